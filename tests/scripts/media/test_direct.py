"""Files written past the page cache: the same bytes, whatever the pieces and whatever the file system."""

import errno
import fcntl
import os
import random
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from scripts.media.direct import BLOCK, DirectWriter
from scripts.media.tarshard import ShardWriter
from tests.disks import small_disk


def write(path: Path, pieces: list[bytes]) -> int:
    """Write `pieces` one after the other; return the flags that the file had before the last was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with closing(DirectWriter(descriptor)) as writer:
        for piece in pieces:
            writer.write(piece)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        writer.finish()
    os.close(descriptor)
    return flags


@pytest.mark.parametrize("sizes", [[], [0, 1], [BLOCK], [BLOCK - 1, 2], [3 * BLOCK + 5, 0, 7], [100_003] * 130])
def test_every_byte_arrives_in_its_place(tmp_path, sizes):
    chooser = random.Random(0)
    pieces = [chooser.randbytes(size) for size in sizes]
    write(tmp_path / "file", pieces)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")
def test_a_file_system_without_direct_writes_is_written_as_usual(tmp_path):
    """ramfs is nothing but the page cache, and refuses."""
    folder = tmp_path / "ram"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "ramfs", "ramfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets us mount no file system: {done.stderr.strip()}")
    try:
        data = random.Random(0).randbytes(2 * BLOCK + 100)
        assert not write(folder / "file", [data]) & os.O_DIRECT
        assert (folder / "file").read_bytes() == data
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("blocks", [1, 5])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, blocks):
    """Whether it is the thread or the end that meets it."""
    with small_disk(tmp_path / "disk", 3 if blocks == 1 else 14) as folder:
        with pytest.raises(OSError) as caught, ShardWriter(folder / "x.tar") as writer:
            for number in range(blocks):
                writer.add(f"image{number}", [("jpg", bytes(BLOCK - 100_000))])
        assert caught.value.errno == errno.ENOSPC
        assert list(folder.iterdir()) == []
