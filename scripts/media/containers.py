"""Listing the images inside of container files: zip and tar archives, JSON objects of base64, Parquet tables.

Nothing is unpacked. A container is read once, in constant memory, and every image in it becomes an entry with the
position of its bytes, from where `raw_images` reads them. An image is identified by its path in the folder that the
container stands for, as if it had been unpacked there. A name that is no such path, and a member that is not a regular
file, give an entry with a fault.
"""

import mmap
import os
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.common.errors import UserError
from scripts.common.files import bytes_sha256
from scripts.media import tar_members, zip_directory
from scripts.media.keys import is_hidden, is_image, is_image_data
from scripts.media.opening import MAX_BYTES

FILE, STORED, DEFLATED, BASE64, PARQUET = "file", "stored", "deflated", "base64", "parquet"
COMPRESSED_TAR, EMBEDDED = "compressed_tar", "embedded"

_WINDOW = 32 << 20
_SIGNATURE_BYTES = 512
_BATCH = 4096


class ImageEntry(NamedTuple):
    """One image.

    Attributes:
        path: below the data path, as if unpacked.
        container: file below the data path that contains it; "" for a separate file.
        kind: how it is stored: FILE, STORED, DEFLATED, BASE64, PARQUET, COMPRESSED_TAR, or EMBEDDED in a row.
        offset, length: of the stored bytes, in a compressed tar of what it unpacks to; in a Parquet table `offset` is
            the row, and `length` an estimate; of an embedded image `offset` is the number of its row in the container.
        crc: CRC-32 of the image's bytes, where the container has one; else -1.
        fault: why the image cannot be used, or "".
    """

    path: str
    container: str
    kind: str
    offset: int
    length: int
    crc: int = -1
    fault: str = ""


def list_container(file_path: Path, container: str, folder: str, root: str | None = None) -> Iterator[ImageEntry]:
    """The images in a container, in its order. It is not hashed as a whole: every image that is read from it will be.

    They are yielded while the container is read, because a list of millions would take gigabytes.

    Args:
        file_path: the container.
        container: its path below the data path.
        folder: the folder that it stands for, below the data path, ending in "/".
        root: of an archive: the folder inside of it that `folder` stands for, ending in "/", or "" (see
            `archive_root`); None, for a zip: the base names of its members are the names of the images.

    Raises:
        UserError: the file is damaged, or is not a container of images.
    """
    readers: dict[str, Callable[[Path, str, str], Iterator[ImageEntry]]] = {
        ".zip": partial(_zip_entries, root=root),
        ".json": _json_entries,
        ".parquet": _parquet_entries,
    }
    tar_entries = partial(_tar_entries, root=root or "")
    seen: set[str] = set()
    try:
        for entry in readers.get(file_path.suffix.lower(), tar_entries)(file_path, container, folder):
            repeated = entry.path in seen and not entry.fault
            seen.add(entry.path)
            yield entry._replace(fault="duplicate_name") if repeated else entry
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file_path} is damaged or cut off, get it again: {error}") from None


def archive_root(file_paths: Iterable[Path]) -> str:
    """The folder that contains all images of all of these archives, ending in "/"; "" if they have none in common.

    Raises:
        UserError: an archive is damaged.
    """
    roots: set[str] = set()
    for file_path in file_paths:
        for name, fault in _image_names(file_path):
            if not fault and not _leads_out(name):
                roots.add(posixpath.dirname(posixpath.normpath(name)))
    common = posixpath.commonpath(roots) if roots else ""
    return f"{common}/" if common else ""


def _image_names(file_path: Path) -> Iterator[tuple[str, str]]:
    """Names and faults of the members of a zip or tar that are images."""
    if file_path.suffix.lower() != ".zip":
        yield from ((member.name, member.fault) for member in _tar_images(file_path))
        return
    with _opened(file_path) as file:
        for member in _image_members(file):
            yield member.name, member.fault


@contextmanager
def _opened(file_path: Path) -> Iterator[int]:
    """A container, open for reading; errors that its bytes cause become a UserError."""
    try:
        with file_path.open("rb") as file:
            yield file.fileno()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{file_path} is damaged or cut off, get it again: {error}") from None


def _named(folder: str, name: str) -> tuple[str, str]:
    """The path of the image `name` in `folder`, and the fault if `name` is not a valid file name, else ""."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        return f"{folder}{name!r:.100}", "unsafe_path"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"{folder}{name!r:.100}", "invalid_utf8"
    return folder + name, ""


def _zip_entries(file_path: Path, container: str, folder: str, root: str | None) -> Iterator[ImageEntry]:
    """The images of a zip.

    With a `root`, by their paths below it. Without, by their base names, because published archives differ in the
    folders inside of them; a base name that several folders have then belongs to none of them, unless one of the
    folders is that of the set itself.
    """
    with _opened(file_path) as file:
        found = list(_image_members(file))
    folders: dict[str, set[str]] = {}
    for member in found:
        parent, name = posixpath.split(member.name)
        if not member.fault and not _leads_out(member.name):
            folders.setdefault(name, set()).add(parent)
    for member in found:
        parent, name = posixpath.split(member.name)
        fault = member.fault
        if _leads_out(member.name):
            path, fault = f"{folder}{member.name!r:.100}", "unsafe_path"
        elif root is not None:
            path = folder + posixpath.normpath(member.name).removeprefix(root)
        elif len(folders.get(name, ())) < 2 or _is_folder_of(folder, parent, folders[name]):
            path, unsafe = _named(folder, name)
            fault = unsafe or fault
        else:
            path, fault = folder + member.name, "ambiguous_name"
        kind = STORED if member.method == zip_directory.STORED else DEFLATED
        yield ImageEntry(path, container, kind, member.offset, member.length, member.crc, fault)


def _tar_entries(file_path: Path, container: str, folder: str, root: str) -> Iterator[ImageEntry]:
    """The images of a tar, by their paths below `root`."""
    kind = COMPRESSED_TAR if tar_members.is_compressed(file_path) else STORED
    for member in _tar_images(file_path):
        name, fault = member.name, member.fault
        if _leads_out(name):
            path, fault = f"{folder}{name!r:.100}", "unsafe_path"
        else:
            path = folder + posixpath.normpath(name).removeprefix(root)
        try:
            path.encode()
        except UnicodeEncodeError:
            path, fault = path.encode("utf-8", "backslashreplace").decode(), "invalid_utf8"
        offset, length = (0, 0) if fault else (member.offset, member.length)
        yield ImageEntry(path, container, kind, offset, length, fault=fault)


def _tar_images(file_path: Path) -> Iterator[tar_members.Member]:
    """The members of a tar that are images: by the ending of their name, or else by their first bytes."""
    for member in tar_members.members(file_path):
        if is_image(member.name) or (not is_hidden(member.name) and is_image_data(member.beginning)):
            yield member


def _leads_out(name: str) -> bool:
    """Whether the name of a member is not that of a file below the folder into which the archive is unpacked."""
    return name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/")


def _is_folder_of(folder: str, parent: str, parents: Iterable[str]) -> bool:
    """Whether `parent` is the only one of the folders `parents` of an archive that is a set's `folder`, or its end."""

    def matches(each: str) -> bool:
        return bool(each) and f"/{folder}".endswith(f"/{each}/")

    return matches(parent) and sum(map(matches, parents)) == 1


def _image_members(file: int) -> Iterator[zip_directory.Member]:
    """The members of an archive that are images: by the ending of their name, or else by their first bytes."""
    for member in zip_directory.members(file):
        if is_image(member.name) or (not is_hidden(member.name) and is_image_data(_beginning(file, member))):
            yield member


def _beginning(file: int, member: zip_directory.Member) -> bytes:
    """The first bytes of the content of a member."""
    if member.fault:
        return b""
    stored = os.pread(file, min(member.length, _SIGNATURE_BYTES), member.offset)
    if member.method == zip_directory.STORED:
        return stored
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, _SIGNATURE_BYTES)
    except zlib.error:
        return b""


_COLON = re.compile(rb"\s*:\s*")
_NEXT = re.compile(rb"\s*([,}])\s*")
_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{\s*")
_SCALAR = re.compile(rb"[-+.A-Za-z0-9]+")


def _json_entries(file_path: Path, container: str, folder: str) -> Iterator[ImageEntry]:
    """The values of a JSON object of strings, found by their quotes: base64 contains no quotes.

    Ten to twenty times faster than a JSON parser; the file, which may have 70 GB, is mapped and never read as a whole.
    """
    with file_path.open("rb") as file:
        if not file.seek(0, 2):
            raise UserError(f"{file_path} is empty: get it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _scan(data, file_path, container, folder)


def _scan(data: mmap.mmap, file_path: Path, container: str, folder: str) -> Iterator[ImageEntry]:
    def broken(at: int, expected: str) -> UserError:
        found = data[at : at + 40] or b"the end of the file"
        return UserError(
            f"{file_path} is damaged or cut off, or not an object of images by id: at byte {at} there should be "
            f"{expected}, but there is {found!r}. Get the file again"
        )

    start = _START.match(data)
    if start is None:
        raise broken(0, "'{'")
    at, released = start.end(), 0
    while data[at : at + 1] != b"}":
        if data[at : at + 1] != b'"':
            raise broken(at, "an id in quotes")
        end = data.find(b'"', at + 1)
        colon = _COLON.match(data, end + 1) if end > 0 else None
        if colon is None:
            raise broken(at, "an id and ':'")
        try:
            path, fault = _named(folder, data[at + 1 : end].decode())
        except UnicodeDecodeError:
            path, fault = f"{folder}{data[at + 1 : end]!r:.100}", "invalid_utf8"
        value = colon.end()
        if data[value : value + 1] == b'"':
            value += 1
            end = after = data.find(b'"', value)
            after += 1
        elif scalar := _SCALAR.match(data, value):
            end = after = scalar.end()
            fault = fault or "not_base64"
        else:
            raise broken(value, "an image as base64 in quotes")
        following = _NEXT.match(data, after) if after > 0 else None
        if following is None:
            raise broken(value, "an image, then ',' or '}'")
        # Base64 has four characters for three bytes.
        fault = fault or ("too_large" if end - value > MAX_BYTES // 3 * 4 else "")
        yield ImageEntry(path, container, BASE64, value, end - value, fault=fault)
        at = following.start(1) if following[1] == b"}" else following.end()
        if at - released >= _WINDOW:
            # Release the pages that were scanned; otherwise the whole file ends up in the process's resident memory.
            page = released // mmap.PAGESIZE * mmap.PAGESIZE
            data.madvise(mmap.MADV_DONTNEED, page, at // mmap.PAGESIZE * mmap.PAGESIZE - page)
            released = at
    if data[at + 1 : at + 4096].strip():
        raise broken(at + 1, "the end of the file")


def _parquet_entries(file_path: Path, container: str, folder: str) -> Iterator[ImageEntry]:
    """The rows of a table in one of the three layouts in which MIMIC-IT has been published."""
    form = parquet_form(file_path)
    with pq.ParquetFile(file_path) as table:
        size = -(-file_path.stat().st_size // max(1, table.metadata.num_rows))
        if form.image == "images":
            known: set[str] = set()
            for number, data in embedded_images(file_path):
                name = embedded_id(data)
                if name not in known:
                    yield ImageEntry(folder + name, container, PARQUET, number, len(data))
                known.add(name)
            return
        row = 0
        for batch in table.iter_batches(_BATCH, columns=[form.id]):
            for name in batch.column(0).to_pylist():
                path, fault = _named(folder, str(name))
                yield ImageEntry(path, container, PARQUET, row, size, fault=fault)
                row += 1


class ParquetForm(NamedTuple):
    """The names of the columns with ids and with images.

    Attributes:
        id: "id", or the name that pandas gave to an index.
        image: "base64" (text), "image" (bytes), or "images" (a list: the images of an instruction, without ids).
    """

    id: str
    image: str


def parquet_form(file_path: Path) -> ParquetForm:
    """Which columns of a Parquet file contain the images.

    Raises:
        UserError: the table has none of the known layouts.
    """
    names = pq.read_schema(file_path).names
    # A table that pandas wrote with ids as its index keeps them in a column of this name.
    id_ = next((name for name in ("id", "__index_level_0__", "index") if name in names), None)
    for image in ("base64", "image", "images"):
        if image in names and id_:
            return ParquetForm(id_, image)
    raise UserError(
        f"{file_path} should have a column of ids and one of images (base64, image or images); it has {names}"
    )


SLOTS = 64
"""Most images of an instruction in the layout "images"; the n-th image of a row has the number `row * SLOTS + n`."""


def embedded_images(file_path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every image of a table whose rows are instructions with their images."""
    with pq.ParquetFile(file_path) as table:
        row = 0
        for batch in table.iter_batches(64, columns=["images"]):
            for images in batch.column(0).to_pylist():
                for index, image in enumerate((images or [])[:SLOTS]):
                    yield row * SLOTS + index, image_bytes(image)
                row += 1


def embedded_id(data: bytes) -> str:
    """The id of an image that has none: a hash of its bytes, so that all instructions about an image share one id."""
    return bytes_sha256(data)[:32]


def image_bytes(image: object) -> bytes:
    """The bytes in a value of an image column (bytes, or {"bytes": ..., "path": ...}); b"" where there are none."""
    data = image.get("bytes") if isinstance(image, dict) else image
    return data if isinstance(data, bytes) else b""
