"""File systems of a test's own: small ones to fill up, and kinds that behave in another way than the usual.

And `PowerCut`, which knows what a power cut would leave of what was written.
"""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def mounted(folder: Path, kind: str, *options: str) -> Iterator[Path]:
    """Mount a file system that lies in memory at the new folder `folder`; where that is not allowed, skip the test."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", kind, *options, kind, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets us mount no file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: a process that has just been ended may still hold a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of `megabytes`: what a full disk does can be seen without one."""
    with mounted(folder, "tmpfs", "-o", f"size={megabytes}m"):
        yield folder


class PowerCut:
    """What would be left after a power cut: the content of files, and the names in folders, as of their last fsync.

    Watches the calls of the operating system while the test runs. `renames` lists the name that each rename gave, and
    whether all that it names was on the disk before.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        self._synced: dict[tuple[int, int], Any] = {}
        self.renames: list[tuple[str, bool]] = []
        fsync = os.fsync

        def watched_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self._synced[_inode(descriptor)] = _state(descriptor)

        patch.setattr(os, "fsync", watched_fsync)
        for name in ("rename", "replace"):
            patch.setattr(os, name, self._watched_rename(getattr(os, name)))

    def spares(self, path: Path) -> bool:
        """Whether the content of a file, or all that a folder holds, would be left as it is now."""
        if self._synced.get(_inode(path)) != _state(path):
            return False
        return not path.is_dir() or all(map(self.spares, path.iterdir()))

    def spares_name(self, path: Path) -> bool:
        """Whether `path` would be found under its name."""
        return (path.name, path.stat().st_ino) in self._synced.get(_inode(path.parent), ())

    def names(self, folder: Path) -> set[str]:
        """The names that would be found in `folder`."""
        return {name for name, _ in self._synced.get(_inode(folder), ())}

    def _watched_rename(self, rename):
        def watched(source, target) -> None:
            self.renames.append((Path(target).name, self.spares(Path(source))))
            rename(source, target)

        return watched


def _inode(file: int | Path) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_dev, found.st_ino


def _state(file: int | Path) -> Any:
    """What an fsync of a file or a folder brings to the disk."""
    found = os.stat(file)
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size, found.st_mtime_ns
    with os.scandir(file) as entries:
        return {(entry.name, entry.inode()) for entry in entries}
