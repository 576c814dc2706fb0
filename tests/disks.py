"""A small file system of its own, to fill up: what a full disk does can then be seen without one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount `megabytes` of memory at the new folder `folder`; the test is skipped where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets us mount no file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily: a process that has just been ended may still hold a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
