"""Folders and links that are written whole or not at all: beside their final path, and renamed at the end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.common.errors import UserError, naming_target
from scripts.common.files import sync, temporary_prefix


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty draft folder, which replaces `target` when the block ends without an error.

    A killed program leaves the old folder (or, between the two renames, none) and a hidden draft that the next attempt
    removes.

    Raises:
        OSError: a file cannot be written, also where a library raises an error of its own; `filename` is its path.
    """
    draft, old = (target.with_name(f".{target.name}.{role}") for role in ("draft", "old"))
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with naming_target(draft, target):
            draft.mkdir(parents=True)
            yield draft
            for path in draft.iterdir():
                sync(path)
            sync(draft)
            if target.exists():
                target.rename(old)
            draft.rename(target)
            sync(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def point_link(target: Path, link: Path) -> None:
    """Point `link` at `target` atomically; a relative target gives a relative link, so that both can be moved.

    Raises:
        UserError: `link` is there, and is no link.
    """
    link_text = target if target.is_absolute() else os.path.relpath(target.resolve(), link.parent.resolve())
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is not a link: remove it, then fetch again")
    temporary = link.with_name(f"{temporary_prefix(link)}link.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(link_text)
    os.replace(temporary, link)
