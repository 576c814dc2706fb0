"""Folders by the name of their source, as the programs take them on the command line."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from scripts.common.errors import UserError


def add_folders(arguments: argparse.ArgumentParser, flag: str, description: str) -> None:
    """Declare a flag that takes any number of SOURCE=FOLDER."""
    arguments.add_argument(flag, nargs="*", action="extend", default=[], metavar="SOURCE=FOLDER", help=description)


def named_folders(values: Iterable[str], flag: str) -> dict[str, Path]:
    """`["coco=media/coco"]` as a mapping; a folder without a name has that of its last part.

    Raises:
        UserError: a value names no folder, or a source is given twice.
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
