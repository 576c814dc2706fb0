"""Reading the raw images of a source from where they are stored: files, archives, base64 JSON, Parquet, rows.

`ImageEntry` (see `containers`) gives the position. Most are read with one `pread` per image, in any order. Of a Parquet
file whole row groups have to be decoded, a compressed tar has to be unpacked, and a file of rows has to be parsed, so
the images of these that will be read are first copied into a temporary file, in one pass.
"""

import os
import tempfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pybase64

from scripts.common.errors import UserError
from scripts.media import tar_members
from scripts.media.containers import (
    BASE64,
    COMPRESSED_TAR,
    DEFLATED,
    EMBEDDED,
    FILE,
    PARQUET,
    ImageEntry,
    embedded_images,
    image_bytes,
    parquet_form,
)
from scripts.media.hashed_names import embedded_path
from scripts.media.opening import MAX_BYTES, UnreadableImageError, read_image

_BATCH = 64
_NO_CRC = -1
_COPIED = (PARQUET, COMPRESSED_TAR, EMBEDDED)
"""Kinds of images that are copied before they are read."""

ImagesInRows = Callable[[str, Collection[int]], Iterable[bytes]]
"""The bytes of all images in some rows, given by their numbers, of a file of rows below the data path."""


class RawImageReader:
    """The images of one source below `root`, for one process.

    Args:
        root: the data path.
        sizes: bytes of every container, as listed by fetch.
        entries: those that will be read; needed only for images that have to be copied first.
        in_rows: reads the images inside of rows; needed only for these.
    """

    def __init__(
        self,
        root: Path,
        sizes: Mapping[str, int],
        entries: Iterable[ImageEntry] = (),
        in_rows: ImagesInRows | None = None,
    ) -> None:
        self.root, self._sizes, self._in_rows = root, sizes, in_rows
        self._open: dict[str, int] = {}
        self._spooled: dict[ImageEntry, tuple[int, int, bool]] = {}
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        copied = [entry for entry in entries if entry.kind in _COPIED and not entry.fault]
        for container, entries_of_container in _by_container(copied):
            self._copy(container, entries_of_container)

    def read(self, entry: ImageEntry) -> bytes:
        """The bytes of an image.

        Raises:
            UnreadableImageError: its stored bytes are damaged, or the entry has a fault.
            UserError: the container is missing or has changed.
        """
        if entry.fault:
            raise UnreadableImageError(entry.fault, entry.path)
        if entry.kind == FILE:
            return self._file(entry.path)
        if entry.kind in _COPIED:
            if entry not in self._spooled:
                raise self._changed(entry.container)
            offset, length, text = self._spooled[entry]
            data = os.pread(self._spool.fileno(), length, offset)
            return _base64(data) if text else data
        stored = os.pread(self._container(entry.container), entry.length, entry.offset)
        if entry.kind == BASE64:
            return _base64(stored)
        data = _inflate(stored) if entry.kind == DEFLATED else stored
        if entry.crc != _NO_CRC and zlib.crc32(data) != entry.crc:
            raise UnreadableImageError("corrupt", f"{entry.container}: the checksum of {entry.path} differs")
        return data

    def close(self) -> None:
        """Close all files."""
        self._spool.close()
        while self._open:
            os.close(self._open.popitem()[1])

    def _file(self, path: str) -> bytes:
        try:
            return read_image(self.root / path)
        except OSError as error:
            raise UserError(f"{self.root / path} cannot be read: {error.strerror}; was it moved? Fetch again") from None

    def _container(self, path: str) -> int:
        if path not in self._open:
            try:
                handle = os.open(self.root / path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self.root / path} cannot be read: {error.strerror}; fetch again") from None
            if os.fstat(handle).st_size != self._sizes[path]:
                os.close(handle)
                raise self._changed(path)
            self._open[path] = handle
        return self._open[path]

    def _changed(self, path: str) -> UserError:
        return UserError(f"{self.root / path} has changed since it was fetched: fetch again")

    def _copy(self, container: str, entries: list[ImageEntry]) -> None:
        """Copy the images of `entries`, all of one container and kind, to the temporary file."""
        self._container(container)
        for entry, stored in self._stored(container, entries):
            data = stored.encode() if isinstance(stored, str) else stored
            offset = self._spool.seek(0, os.SEEK_END)
            self._spooled[entry] = (offset, len(data), isinstance(stored, str))
            self._spool.write(data)
        self._spool.flush()

    def _stored(self, container: str, entries: list[ImageEntry]) -> Iterator[tuple[ImageEntry, str | bytes]]:
        """The stored values of `entries`; base64 is a str."""
        if entries[0].kind == EMBEDDED:
            yield from self._embedded(container, entries)
            return
        by_number = {entry.offset: entry for entry in entries}
        if entries[0].kind == PARQUET:
            values: Iterator[tuple[int, str | bytes]] = _read_parquet(self.root / container, sorted(by_number))
        else:
            values = tar_members.copied(self.root / container, by_number)
        yield from ((by_number[number], stored) for number, stored in values)

    def _embedded(self, container: str, entries: list[ImageEntry]) -> Iterator[tuple[ImageEntry, bytes]]:
        """The images inside of rows: those whose hash is that of an entry, each once."""
        if self._in_rows is None:
            raise ValueError("images inside of rows are read with `in_rows`")
        by_path = {entry.path: entry for entry in entries}
        for data in self._in_rows(container, {entry.offset for entry in entries}):
            if entry := by_path.pop(embedded_path(data), None):
                yield entry, data


def _read_parquet(file_path: Path, numbers: list[int]) -> Iterator[tuple[int, str | bytes]]:
    """Number and stored value of the images `numbers` (sorted) of a Parquet file; base64 is a str.

    Raises:
        UserError: the file is damaged.
    """
    try:
        yield from _parquet_values(file_path, numbers)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file_path} is damaged, get it again: {reason}") from None


def _parquet_values(file_path: Path, numbers: list[int]) -> Iterator[tuple[int, str | bytes]]:
    form = parquet_form(file_path)
    if form.image == "images":
        selected = set(numbers)
        yield from ((number, data) for number, data in embedded_images(file_path) if number in selected)
        return
    with pq.ParquetFile(file_path) as table:
        first = 0
        for group in range(table.metadata.num_row_groups):
            end = first + table.metadata.row_group(group).num_rows
            inside = set(numbers[bisect_left(numbers, first) : bisect_left(numbers, end)])
            if inside:
                yield from _read_row_group(table, group, first, form.image, inside)
            first = end


def _read_row_group(
    table: pq.ParquetFile, group: int, first: int, column: str, rows: Container[int]
) -> Iterator[tuple[int, str | bytes]]:
    """The stored values of some `rows` of a row group whose first row is `first`."""
    row = first
    for batch in table.iter_batches(_BATCH, row_groups=[group], columns=[column]):
        for offset, value in enumerate(batch.column(0)):
            if row + offset in rows:
                stored = value.as_py()
                yield row + offset, stored if isinstance(stored, str) else image_bytes(stored)
        row += batch.num_rows


def _by_container(entries: Iterable[ImageEntry]) -> Iterator[tuple[str, list[ImageEntry]]]:
    """Entries by their container and kind: a tar may hold rows and images."""
    groups: dict[tuple[str, str], list[ImageEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.container, entry.kind), []).append(entry)
    yield from ((container, group) for (container, _), group in groups.items())


def _base64(text: bytes) -> bytes:
    if text.startswith(b"data:"):
        text = text.partition(b",")[2]
    if b"\\" in text:
        # JSON may write "/" as "\/".
        text = text.replace(b"\\/", b"/")
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError as error:
        raise UnreadableImageError("not_base64", str(error)) from None


def _inflate(data: bytes) -> bytes:
    unpack = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        unpacked = unpack.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise UnreadableImageError("corrupt", str(error)) from None
    if unpack.unconsumed_tail:
        raise UnreadableImageError("too_large", f"unpacks to more than {MAX_BYTES} bytes")
    return unpacked
