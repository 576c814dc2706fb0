"""Folders that are written whole or not at all: beside their final path, and renamed at the end."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.common.files import sync


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty draft folder, which replaces `target` when the block ends without an error.

    A killed program leaves the old folder (or, between the two renames, none) and a hidden draft that the next attempt
    removes.
    """
    draft, old = (target.with_name(f".{target.name}.{role}") for role in ("draft", "old"))
    for leftover in (draft, old):
        shutil.rmtree(leftover, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    for path in draft.iterdir():
        sync(path)
    sync(draft)
    if target.exists():
        target.rename(old)
    draft.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
