"""One file out of an archive that lies on the disk: .zip, .tar, .tar.gz.

The caller names the member and the place: no name in the archive becomes a path. Links, devices, absolute names and
names with ".." are refused all the same, since an archive that holds such a thing under the wanted name is not the
published one.
"""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.fetching.verification import UNKNOWN, AddressError, Expected, Fetched, keep

LARGEST_MEMBER = 16 << 30
"""No published file that lies in an archive comes near to it; a few kilobytes of archive can claim any size."""
_CHUNK = 1 << 20
_TARS = (".tar", ".tar.gz", ".tgz")


def is_zip(name: str) -> bool:
    """Whether the name is that of a zip archive."""
    return name.lower().endswith(".zip")


def is_archive(name: str) -> bool:
    """Whether the name is that of an archive that can be read here."""
    return name.lower().endswith((".zip", *_TARS))


def extract_member(
    archive: Path, member: str, place: Path, expected: Expected = UNKNOWN, limit: int = LARGEST_MEMBER
) -> Fetched:
    """Write one regular file of `archive` to `place`, which appears whole and right or not at all.

    Args:
        member: its name in the archive; one folder that holds all of the archive may be left out.

    Raises:
        WrongContent: the file is not what is expected.
        AddressError: the archive is damaged, lacks the member, or holds something else than a plain file there.
    """
    if not is_archive(archive.name):
        raise AddressError(f"{archive.name} is no archive that can be read here: .zip, .tar, .tar.gz or .tgz")
    pieces = (_from_zip if is_zip(archive.name) else _from_tar)(archive, member, limit)
    with _readable(archive):
        return keep(pieces, place, expected)


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise AddressError(f"the archive {archive.name} is damaged: {error}") from None


def _from_zip(archive: Path, member: str, limit: int) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo(find_member((info.filename for info in file.infolist()), member))
        refuse_special(info)
        refuse_large(info.filename, info.file_size, limit)
        with file.open(info) as stream:
            yield from _pieces(stream)


def _from_tar(archive: Path, member: str, limit: int) -> Iterator[bytes]:
    with tarfile.open(archive) as file:
        info = file.getmember(find_member((info.name for info in file), member))
        if not info.isreg():
            raise AddressError(f"{info.name} is not a plain file in the archive")
        refuse_large(info.name, info.size, limit)
        with file.extractfile(info) as stream:
            yield from _pieces(stream)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(_CHUNK):
        yield piece


def find_member(names: Iterable[str], member: str) -> str:
    """The name in an archive that is meant by `member`: itself, or itself below one leading folder.

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
        raise AddressError(f"the archive holds no {member}")
    if len(found) > 1:
        raise AddressError(f"the archive holds {member} several times: {', '.join(sorted(found)[:3])}")
    if not is_inside(found[0]):
        raise AddressError(f"the name {found[0]!r} in the archive leads out of it")
    return found[0]


def is_inside(name: str) -> bool:
    """Whether the name of a member stays inside the folder into which an archive is unpacked."""
    return not (name.startswith("/") or "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts)


def refuse_special(info: zipfile.ZipInfo) -> None:
    """Raise AddressError where a member of a zip is a folder, a link or a device."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or kind not in (0, stat.S_IFREG):
        raise AddressError(f"{info.filename} is not a plain file in the archive")


def refuse_large(name: str, size: int, limit: int) -> None:
    """Raise AddressError where a member claims more than `limit` bytes."""
    if size > limit:
        raise AddressError(f"{name} in the archive claims {size:,} bytes, which is more than the {limit:,} allowed")
