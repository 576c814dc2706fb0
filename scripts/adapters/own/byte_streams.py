"""The bytes of a file of rows: its hash is checked while it is read, and it is decompressed and recoded to UTF-8.

Compression (gzip, bzip2, xz, zstd) and UTF-16 or UTF-32 are recognised by the first bytes, not by the file's name.
"""

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from scripts.adapters.raw import BYTE_ORDER_MARK, changed
from scripts.common.errors import UserError

BUFFER = 1 << 20
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowInvalid, UnicodeError)
"""What readers raise where compressed or recoded bytes are damaged or cut off; OSErrors without a number come too."""
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""Endings of compressed files."""

_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
# The mark of UTF-32 little-endian begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def reading(file_path: Path, sha256: str | None) -> Iterator[IO[bytes]]:
    """The bytes of a file as they are stored.

    Where the block ends without an error, the rest is read and the hash compared; a reader that stops early (closes its
    generator) leaves the rest unread.

    Args:
        file_path: the file.
        sha256: the hash that fetch has listed; None: nothing is compared.

    Raises:
        UserError: the file cannot be read, is damaged, or has another hash.
    """
    try:
        with open(file_path, "rb", buffering=0) as file:
            hashed = _Hashing(file)
            yield io.BufferedReader(hashed, BUFFER)
            if sha256 is not None:
                while hashed.read(BUFFER):
                    pass
    except (OSError, *DAMAGED) as error:
        raise unreadable(file_path, error) from None
    if sha256 is not None and hashed.digest.hexdigest() != sha256:
        raise changed(file_path)


def unreadable(file_path: Path, error: Exception) -> UserError:
    """The error for a file that is not there, or that `error` shows to be damaged."""
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"{file_path} cannot be read: {error.strerror}; was it moved? Fetch again")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(f"{file_path} is damaged or cut off, get it again: {reason}")


class _Hashing(io.RawIOBase):
    """A file that hashes what is read from it, from its beginning to its end."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        return count


class _Chained(io.RawIOBase):
    """Bytes that were read already, then the rest of their stream."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            data = self._rest.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        count = min(len(buffer), len(self._head))
        buffer[:count] = self._head[:count]
        self._head = self._head[count:]
        return count


class _Recoded(io.RawIOBase):
    """A text in UTF-16 or UTF-32 as UTF-8; lone surrogates stay, and cost the rows that have them."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream, self._rest = stream, b""
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            data = self._stream.read(BUFFER)
            self._rest = self._decoder.decode(data, not data).encode("utf-8", "surrogatepass")
            if not data:
                break
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def beginning(stream: IO[bytes], size: int) -> tuple[bytes, IO[bytes]]:
    """The first `size` bytes of a stream, or all if it has fewer, and a stream that begins with them."""
    head = b""
    while len(head) < size and (data := stream.read(size - len(head))):
        head += data
    return head, io.BufferedReader(_Chained(head, stream), BUFFER)


def unpacked(stream: IO[bytes]) -> IO[bytes]:
    """The bytes of a stream, decompressed if they are compressed; damage shows while they are read (`DAMAGED`)."""
    head, stream = beginning(stream, 8)
    if head.startswith(_GZIP):
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=stream)), BUFFER)
    if head.startswith(_BZIP2):
        return bz2.BZ2File(stream)
    if head.startswith(_XZ):
        return lzma.LZMAFile(stream)
    if head.startswith(_ZSTD):
        return io.BufferedReader(_Zstd(stream), BUFFER)
    return stream


class _Zstd(io.RawIOBase):
    """The decompressed bytes of a zstd stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def utf8(stream: IO[bytes]) -> IO[bytes]:
    """The text of a stream as UTF-8 without a byte order mark; other bytes than UTF-8 stay as they are."""
    head, stream = beginning(stream, 4)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return io.BufferedReader(_Recoded(stream, encoding), BUFFER)
    if head.startswith(BYTE_ORDER_MARK):
        stream.read(len(BYTE_ORDER_MARK))
    return stream
