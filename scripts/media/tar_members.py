"""The members of a tar archive, compressed or not, read in one pass in constant memory.

Of a plain tar a member's bytes are read later from their position in the file. Those of a compressed one have a
position only in what it unpacks to, so all that are needed are copied in one pass (`copied`).
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from scripts.common.errors import UserError
from scripts.media.opening import MAX_BYTES

_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of gzip, bzip2 and xz, and what reads them."""
_SIGNATURE = 8
_BEGINNING = 512
_BUFFER = 1 << 20
_DAMAGED = (OSError, EOFError, ValueError, OverflowError, RecursionError, tarfile.TarError, lzma.LZMAError, zlib.error)

_DAMAGED_HEADER = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class Member(NamedTuple):
    """A member that is not a folder.

    Attributes:
        name: as in the archive; bytes that are not UTF-8 are surrogates.
        offset, length: of its data in the archive, or in what it unpacks to.
        fault: why it cannot be read, or "".
        beginning: its first bytes.
    """

    name: str
    offset: int
    length: int
    fault: str
    beginning: bytes


def is_compressed(file_path: Path) -> bool:
    """Whether a tar archive is compressed, by its first bytes."""
    with file_path.open("rb") as file:
        return file.read(_SIGNATURE).startswith(tuple(_COMPRESSED))


def members(file_path: Path) -> Iterator[Member]:
    """The members of an archive, folders apart, in its order.

    Raises:
        UserError: the file is damaged, or is no tar archive.
    """
    with _opened(file_path) as archive:
        for member in entries(archive):
            if member.isdir():
                continue
            fault = _fault(member)
            data = None if fault else archive.extractfile(member)
            beginning = data.read(_BEGINNING) if data else b""
            yield Member(member.name, member.offset_data, member.size, fault, beginning)


def copied(file_path: Path, offsets: Container[int]) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of the members at `offsets`, in the order of the archive.

    Raises:
        UserError: the file is damaged.
    """
    with _opened(file_path) as archive:
        for member in entries(archive):
            data = archive.extractfile(member) if member.offset_data in offsets and not _fault(member) else None
            if data:
                yield member.offset_data, data.read()


def _fault(member: tarfile.TarInfo) -> str:
    if member.issym():
        return "symlink"
    if member.islnk():
        return "hard_link"
    if not member.isreg():
        return "not_a_file"
    if member.issparse():
        return "unsupported_compression"
    return "too_large" if member.size > MAX_BYTES else ""


def entries(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The entries of an archive, none of which it keeps: it may have millions."""
    while member := archive.next():
        yield member
        archive.members.clear()  # type: ignore[attr-defined]


@contextmanager
def open_tar(stream: IO[bytes], file_path: Path) -> Iterator[tarfile.TarFile]:
    """A tar, not compressed, open for one pass. Where the block has read all of its entries, its end is checked.

    Raises:
        UserError: a header is damaged, the end is missing, or the file goes on behind it.
    """
    counted = _Counted(stream)
    try:
        # A stream is not searched for earlier positions.
        with tarfile.open(fileobj=counted, mode="r|", errors="surrogateescape", tarinfo=_StrictHeader) as archive:
            yield archive
            counted.check_end(archive.offset, file_path)
    except tarfile.TarError as error:
        raise _damaged(file_path, error) from None


@contextmanager
def _opened(file_path: Path) -> Iterator[tarfile.TarFile]:
    """An archive, open for one pass; what its bytes cause becomes a UserError."""
    try:
        with file_path.open("rb") as file:
            start = file.read(_SIGNATURE)
            file.seek(0)
            unpack = next((opener for signature, opener in _COMPRESSED.items() if start.startswith(signature)), None)
            with open_tar(unpack(file) if unpack else file, file_path) as archive:
                yield archive
    except _DAMAGED as error:
        raise _damaged(file_path, error) from None


def _damaged(file_path: Path, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(f"{file_path} is damaged or cut off, get it again: {reason}")


class _Counted(io.RawIOBase):
    """A tar of which the last bytes that were read are known."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._last, self._read = stream, b"", 0

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; b"" at the end."""
        data = self._stream.read(size)
        self._read += len(data)
        # tarfile reads ahead by less than a record.
        self._last = (self._last + data)[-2 * tarfile.RECORDSIZE :]
        return data

    def check_end(self, offset: int, file_path: Path) -> None:
        """Raise UserError if there is more than zeros behind `offset`, where `tarfile` has found the end of the tar."""
        behind = self._last[len(self._last) - (self._read - offset) :]
        while behind:
            if behind.strip(b"\0"):
                raise UserError(f"{file_path} goes on behind its end, like archives that were joined: separate them")
            behind = self._stream.read(_BUFFER)


class _StrictHeader(tarfile.TarInfo):
    """The header of a member; `tarfile` takes a damaged one, and a missing end, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictHeader":
        try:
            return super().fromtarfile(archive)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("the end of the archive is missing") from None
        except _DAMAGED_HEADER as error:
            raise tarfile.ReadError(str(error)) from None
