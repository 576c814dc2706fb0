"""Extracting one file from a local archive: .zip, .tar, .tar.gz.

The caller gives the member and the target path, so no name in the archive becomes a path. Links, devices, absolute
names and names with ".." are refused nevertheless: an archive with such a member under the expected name is not the
published one.
"""

import errno
import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.fetching.verification import UNKNOWN, AddressError, Expected, Fetched, write_verified

LARGEST_MEMBER = 16 << 30
"""Bytes. All published files in archives are far smaller; a damaged or malicious archive can claim any size."""
_CHUNK = 1 << 20
_TARS = (".tar", ".tar.gz", ".tgz")


def is_zip(name: str) -> bool:
    """Whether a file name is that of a zip archive."""
    return name.lower().endswith(".zip")


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive in a supported format."""
    return name.lower().endswith((".zip", *_TARS))


def extract_member(
    archive: Path, member: str, target: Path, expected: Expected = UNKNOWN, limit: int = LARGEST_MEMBER
) -> Fetched:
    """Extract one regular file of `archive` to `target`, which appears complete and verified or not at all.

    Args:
        archive: path of the archive.
        member: name in the archive; a top folder that contains the whole archive may be left out.
        target: path to write.
        expected: size and hashes of the file.
        limit: largest size in bytes.

    Raises:
        WrongContentError: the file is not what is expected.
        AddressError: the archive is damaged, lacks the member, or the member is not a regular file.
    """
    if not is_archive(archive.name):
        raise AddressError(f"{archive.name} is not a supported archive: .zip, .tar, .tar.gz or .tgz")
    return write_verified(_member_bytes(archive, member, limit), target, expected)


_DAMAGED = (EOFError, NotImplementedError, OverflowError, RuntimeError, ValueError, struct.error)
"""What the readers of archives raise for damaged ones, beside errors of their own."""


def _member_bytes(archive: Path, member: str, limit: int) -> Iterator[bytes]:
    """The bytes of a member in chunks; raises AddressError if the archive is damaged."""
    try:
        yield from (_from_zip if is_zip(archive.name) else _from_tar)(archive, member, limit)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, *_DAMAGED) as error:
        raise AddressError(f"the archive {archive.name} is damaged: {error}") from None
    except OSError as error:
        # A position that no file can have. Other errors are those of the disk that the archive lies on.
        if error.errno != errno.EINVAL:
            raise
        raise AddressError(f"the archive {archive.name} is damaged: {error.strerror}") from None


def _from_zip(archive: Path, member: str, limit: int) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo(find_member((info.filename for info in file.infolist()), member))
        refuse_special(info)
        refuse_large(info.filename, info.file_size, limit)
        with file.open(info) as stream:
            yield from _chunks(stream)


def _from_tar(archive: Path, member: str, limit: int) -> Iterator[bytes]:
    with tarfile.open(archive) as file:
        info = file.getmember(find_member((info.name for info in file), member))
        stream = file.extractfile(info) if info.isreg() else None
        if stream is None:
            raise AddressError(f"{info.name} is not a plain file in the archive")
        refuse_large(info.name, info.size, limit)
        with stream:
            yield from _chunks(stream)


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk


def find_member(names: Iterable[str], member: str) -> str:
    """The full name of `member` in an archive: itself, or itself below one top folder.

    Raises:
        AddressError: there is none, there are several, or it leads out of the archive.
    """
    found: list[str] = []
    for name in dict.fromkeys(names):
        plain = name.removeprefix("./").lstrip("/")
        if plain == member:
            found = [name]
            break
        if plain.partition("/")[2] == member:
            found.append(name)
    if not found:
        raise AddressError(f"the archive contains no {member}")
    if len(found) > 1:
        raise AddressError(f"the archive contains {member} several times: {', '.join(sorted(found)[:3])}")
    if not is_inside(found[0]):
        raise AddressError(f"the name {found[0]!r} in the archive leads out of it")
    return found[0]


def is_inside(name: str) -> bool:
    """Whether the path of a member stays inside of the folder into which the archive would be unpacked."""
    return not (name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts)


def refuse_special(info: zipfile.ZipInfo) -> None:
    """Raise AddressError if a member of a zip is a folder, a link or a device."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or kind not in (0, stat.S_IFREG):
        raise AddressError(f"{info.filename} is not a plain file in the archive")


def refuse_large(name: str, size: int, limit: int) -> None:
    """Raise AddressError if a member claims more than `limit` bytes."""
    if size > limit:
        raise AddressError(f"{name} in the archive claims {size:,} bytes, which is more than the {limit:,} allowed")
