"""The members of a tar archive, compressed or not, read in one pass in constant memory.

Of a plain tar a member's bytes are read later from their position in the file. Those of a compressed one have a
position only in what it unpacks to, so all that are needed are copied in one pass (`copied`).
"""

import lzma
import tarfile
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from scripts.common.errors import UserError
from scripts.media.opening import MAX_BYTES

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
"""First bytes of gzip, bzip2 and xz."""
_BEGINNING = 512
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
        return file.read(8).startswith(_COMPRESSED)


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
def _opened(file_path: Path) -> Iterator[tarfile.TarFile]:
    """An archive, open for one pass; what its bytes cause becomes a UserError."""
    try:
        # A stream is not searched for earlier positions, so that compressed archives are unpacked once.
        with file_path.open("rb") as file, _archive(file) as archive:
            yield archive
    except _DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file_path} is damaged or cut off, get it again: {reason}") from None


def _archive(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r|*", errors="surrogateescape", tarinfo=_StrictHeader)


class _StrictHeader(tarfile.TarInfo):
    """The header of a member; a damaged one is an error, while `tarfile` takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictHeader":
        try:
            return super().fromtarfile(archive)
        except _DAMAGED_HEADER as error:
            raise tarfile.ReadError(str(error)) from None
