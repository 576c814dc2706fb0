"""WebDataset shards whose bytes depend on nothing but their content, with an index for random access to samples.

A shard is a plain USTAR archive that `tar` and `webdataset` can read. A sample is a run of members that share a key; a
member's name is `<key>.<extension>`. Beside the shard is `<shard>.idx`, in the format of Megatron-Energon:
little-endian uint64 offsets of every sample, then the offset after the last one.
"""

import hashlib
import sys
import tarfile
from array import array
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType

from scripts.common.errors import damaged
from scripts.common.files import atomic, bytes_sha256
from scripts.media.direct import DirectWriter

_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_MAX_NAME = 100
"""Longer names need the prefix field of USTAR, which some readers of shards ignore."""


def shard_name(prefix: str, index: int, total: int) -> str:
    """`train`, 3, 8 -> `train-00003-of-00008.tar`."""
    return f"{prefix}-{index:05d}-of-{total:05d}.tar"


def index_path(shard: str | Path) -> Path:
    """The path of the index of `shard`."""
    return Path(f"{shard}.idx")


class ShardWriter:
    """Writes one shard and its index; both appear only when the `with` block ends without an error.

    Attributes:
        path: of the shard.
        bytes: written so far; after the block, the size of the archive.
        index_sha256: after the block, the sha256 of the index.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.bytes = 0
        self.index_sha256 = ""
        self._digest = hashlib.sha256()
        self._offsets: list[int] = []

    def __enter__(self) -> "ShardWriter":
        with ExitStack() as stack:
            file = stack.enter_context(atomic(self.path))
            self._out = stack.enter_context(closing(DirectWriter(file.fileno())))
            stack.push(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    @property
    def samples(self) -> int:
        """Samples written so far."""
        return len(self._offsets)

    @property
    def sha256(self) -> str:
        """The sha256 of the bytes written so far; after the block, of the archive."""
        return self._digest.hexdigest()

    def add(self, key: str, members: Sequence[tuple[str, bytes]]) -> list[int]:
        """Append a sample; return the offset of each member's data.

        Args:
            key: of the sample.
            members: pairs of extension and data.

        Raises:
            ValueError: the key is empty or has a dot, or a member's name is too long.
        """
        if not key or "." in key:
            raise ValueError(f"a sample's key must not be empty or contain a dot: {key!r}")
        self._offsets.append(self.bytes)
        return [self._add_member(f"{key}.{extension}", data) for extension, data in members]

    def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        end = self.bytes
        # Two empty blocks end an archive; tar pads it to a multiple of its record size.
        self._write(bytes(2 * _BLOCK + -(end + 2 * _BLOCK) % _RECORD))
        self._out.finish()
        self.index_sha256 = write_index(self.path, [*self._offsets, end])

    def _add_member(self, name: str, data: bytes) -> int:
        self._write(_header(name, len(data)))
        offset = self.bytes
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._digest.update(data)
        self.bytes += len(data)


def _header(name: str, size: int) -> bytes:
    """The header of a regular file with mode 0444, no owner and time 0: POSIX.1-1988 (ustar), 512 bytes.

    Not made by `tarfile`, because what it writes into the device fields depends on the version of Python, and because
    it takes a tenth of the time of checking a small image.
    """
    encoded = name.encode()
    if len(encoded) > _MAX_NAME:
        raise ValueError(f"member name longer than {_MAX_NAME} bytes: {name}")
    before = b"%-100b0000444\x000000000\x000000000\x00%011o\x0000000000000\x00" % (encoded.ljust(100, b"\0"), size)
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(_BLOCK - 265)
    # The checksum is computed as if its own field were eight blanks.
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return b"%b%06o\0 %b" % (before, checksum, after)


def write_index(shard: str | Path, offsets: Sequence[int]) -> str:
    """Write the offsets of a shard's samples, and of their end, to its index; return the sha256 of the file."""
    values = array("Q", offsets)
    if sys.byteorder == "big":
        values.byteswap()
    with atomic(index_path(shard)) as file:
        file.write(values.tobytes())
    return bytes_sha256(values.tobytes())


def read_index(shard: str | Path) -> list[int]:
    """The offsets (samples + 1,) of a shard's samples and of their end.

    Raises:
        UserError: the index is missing or damaged.
    """
    path = index_path(shard)
    values = array("Q")
    try:
        values.frombytes(path.read_bytes())
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except ValueError:
        raise damaged(path, "is damaged: it is no list of offsets") from None
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
