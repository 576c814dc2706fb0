"""Folders that are written whole or not at all: beside their final path, and renamed at the end."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.common.errors import mark_writing
from scripts.common.files import sync

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) name an error of the operating system."""


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
        draft.mkdir(parents=True)
        yield draft
        for path in draft.iterdir():
            sync(path)
        sync(draft)
        if target.exists():
            target.rename(old)
        draft.rename(target)
        sync(target.parent)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            name = draft if error.filename is None else Path(os.fsdecode(error.filename))
            if name.is_relative_to(draft):
                mark_writing(error, target / name.relative_to(draft))
            raise
        if isinstance(error, Exception) and (match := _RUST_ERROR.search(str(error))):
            number = int(match[1])
            translated = OSError(number, os.strerror(number))
            mark_writing(translated, target)
            raise translated from None
        raise
    shutil.rmtree(old, ignore_errors=True)
