"""Files written past the page cache: the same bytes, whatever the pieces and whatever the file system."""

import errno
import fcntl
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from scripts.media.direct import BLOCK, DirectWriter
from scripts.media.tarshard import ShardWriter
from tests.disks import mounted, small_disk

DIRECT = getattr(os, "O_DIRECT", 0)


def write(path: Path, pieces: list[bytes]) -> bool:
    """Write `pieces` one after the other; return whether the last of them went past the page cache."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with closing(DirectWriter(descriptor)) as writer:
        for piece in pieces:
            writer.write(piece)
        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT)
        writer.finish()
    os.close(descriptor)
    return direct


def allows_direct(folder: Path) -> bool:
    """Whether the file system of `folder` writes past the page cache."""
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | DIRECT))
    except OSError:
        return False
    return bool(DIRECT)


@pytest.mark.parametrize("sizes", [[], [0, 1], [BLOCK], [BLOCK - 1, 2], [3 * BLOCK + 5, 0, 7], [100_003] * 130])
def test_every_byte_arrives_in_its_place(tmp_path, sizes):
    chooser = random.Random(0)
    pieces = [chooser.randbytes(size) for size in sizes]
    write(tmp_path / "file", pieces)
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def test_only_files_of_a_block_and_more_pass_the_page_cache_by(tmp_path):
    assert write(tmp_path / "large", [bytes(2 * BLOCK)]) == allows_direct(tmp_path)
    assert not write(tmp_path / "small", [bytes(BLOCK - 1)])


def test_a_file_system_without_direct_writes_is_written_as_usual(tmp_path):
    """ramfs is nothing but the page cache, and refuses."""
    with mounted(tmp_path / "ram", "ramfs") as folder:
        assert not allows_direct(folder)
        data = random.Random(0).randbytes(2 * BLOCK + 100)
        assert not write(folder / "file", [data])
        assert (folder / "file").read_bytes() == data


@pytest.mark.parametrize("blocks", [1, 5])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, blocks):
    """The error may occur in the thread, or when the shard is finished."""

    def fill(folder) -> None:
        with ShardWriter(folder / "x.tar") as writer:
            for number in range(blocks):
                writer.add(f"image{number}", [("jpg", bytes(BLOCK - 100_000))])

    with small_disk(tmp_path / "disk", 3 if blocks == 1 else 14) as folder:
        with pytest.raises(OSError, match="No space left") as caught:
            fill(folder)
        assert caught.value.errno == errno.ENOSPC
        assert list(folder.iterdir()) == []
