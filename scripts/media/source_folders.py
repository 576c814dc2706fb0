"""Command-line arguments of the form SOURCE=FOLDER."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from scripts.common.errors import UserError


def add_folders(arguments: argparse.ArgumentParser, flag: str, description: str) -> None:
    """Add an option that takes any number of SOURCE=FOLDER."""
    arguments.add_argument(flag, nargs="*", action="extend", default=[], metavar="SOURCE=FOLDER", help=description)


def named_folders(values: Iterable[str], flag: str) -> dict[str, Path]:
    """`["coco=media/coco"]` -> `{"coco": Path("media/coco")}`; the default name is the last part of the folder.

    Raises:
        UserError: a value has no folder, or a source is given twice.
    """
    folders: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or "/" in name:
            name, folder = Path(value).name, value
        if not name or not folder:
            raise UserError(f"{flag} {value!r} should be SOURCE=FOLDER")
        if name in folders:
            raise UserError(f"{flag}: the source {name!r} is given twice")
        folders[name] = Path(folder)
    return folders
