"""File systems of a test's own: small ones to fill up, and kinds that behave in another way than the usual."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
