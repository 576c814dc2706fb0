"""Rows of own data, one at a time and in constant memory, from every kind of file that can hold them.

`read_rows` decides by the name what kind of file it is, and by the content how it is compressed, encoded and laid out.
The bytes of a file are compared with the hash that fetch has listed: while they are read, or before where a format is
not read from the beginning to the end (Parquet, Arrow, zip).
"""

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, cast

from scripts.adapters.own.archive_rows import tar_rows, zip_rows
from scripts.adapters.own.byte_streams import BUFFER, COMPRESSIONS, DAMAGED, reading, unpacked, unreadable, utf8
from scripts.adapters.own.json_rows import LINE_ENDINGS, json_rows
from scripts.adapters.own.table_rows import NESTED, arrow_rows, parquet_rows, text_table_rows
from scripts.adapters.raw import Note, RawRow
from scripts.common.errors import UserError

TEXT_ENDINGS = (".json", *LINE_ENDINGS, ".csv", ".tsv")
"""Endings of texts with rows, which may be compressed."""
TABLE_ENDINGS = (".parquet", ".arrow", ".feather")
"""Endings of tables with rows."""
TAR_ENDINGS = (".tar", ".tgz", *(f".tar{ending}" for ending in COMPRESSIONS))
"""Endings of tars."""
ZIP_ENDING = ".zip"
LARGEST_TABLE = 16 << 30
"""Bytes of the largest table in an archive, which is copied to a temporary file: a damaged one can claim any size."""


def kind_of(name: str) -> str:
    """The ending by which a file is read, one of those above without compression (".tar" for all tars); "" if none."""
    name = name.lower()
    if name.endswith(TAR_ENDINGS):
        return ".tar"
    plain = next((name.removesuffix(ending) for ending in COMPRESSIONS if name.endswith(ending)), name)
    if ending := next((ending for ending in TEXT_ENDINGS if plain.endswith(ending)), ""):
        return ending
    return next((ending for ending in (*TABLE_ENDINGS, ZIP_ENDING) if name.endswith(ending)), "")


def read_rows(
    file_path: Path, name: str, notes: list[Note], sha256: str | None = None, nested: Collection[str] = NESTED
) -> Iterator[RawRow]:
    """The rows of a file, with their numbers in it, from 0, as ids.

    A row that cannot be read, but costs only itself, has a `Broken` value. The file is open while rows are taken.

    Args:
        file_path: the file.
        name: by which rows and notes name it; that of a file in an archive is `NAME/PATH`.
        notes: about rows that are not lost; they are appended as the rows are read.
        sha256: the hash that fetch has listed; None: nothing is compared.
        nested: columns of text tables (CSV, TSV) that may hold lists or objects.

    Raises:
        UserError: the file cannot be read, has changed, is damaged, is of no known kind or has no rows.
    """
    kind = kind_of(name)
    if not kind:
        known = ", ".join((*TEXT_ENDINGS, *TABLE_ENDINGS, ".tar", ZIP_ENDING))
        raise UserError(f"{file_path} is of no kind that holds rows; known are {known}, also compressed")
    reader = _Reader(file_path, notes, nested)
    if kind in TABLE_ENDINGS or kind == ZIP_ENDING:
        if sha256 is not None:
            with reading(file_path, sha256):
                pass
        if kind == ZIP_ENDING:
            yield from zip_rows(file_path, name, is_member, reader.inner)
        else:
            yield from reader.table(kind, file_path, name)
        return
    with reading(file_path, sha256) as stored:
        yield from reader.stream(stored, name)


def is_member(name: str) -> bool:
    """Whether a file in an archive has the name of a file of rows."""
    return kind_of(name) not in ("", ".tar", ZIP_ENDING)


class _Reader:
    """Reads the rows of one file, or of the files in it if it is an archive."""

    def __init__(self, file_path: Path, notes: list[Note], nested: Collection[str]) -> None:
        self._file_path, self._notes, self._nested = file_path, notes, nested

    def stream(self, stored: IO[bytes], name: str) -> Iterator[RawRow]:
        """The rows of a text or a tar, from its stored bytes."""
        plain = unpacked(stored)
        if kind_of(name) == ".tar":
            return tar_rows(plain, self._file_path, name, self._notes, is_member, self.inner)
        if kind_of(name) in (".csv", ".tsv"):
            return text_table_rows(utf8(plain), self._file_path, name, self._nested)
        return json_rows(utf8(plain), self._file_path, name, self._notes)

    def table(self, kind: str, file: Path | IO[bytes], name: str) -> Iterator[RawRow]:
        """The rows of a table."""
        return (parquet_rows if kind == ".parquet" else arrow_rows)(file, self._file_path, name)

    def inner(self, stored: IO[bytes], name: str) -> Iterator[RawRow]:
        """The rows of a file in an archive; a table is copied to a temporary file first, to be read at any position."""
        inner = _Reader(Path(self._file_path, name.partition("/")[2]), self._notes, self._nested)
        if kind_of(name) not in TABLE_ENDINGS:
            try:
                yield from inner.stream(stored, name)
            except DAMAGED as error:
                raise unreadable(inner._file_path, error) from None
            return
        with tempfile.TemporaryFile() as copy:
            size = 0
            while data := stored.read(BUFFER):
                size += len(data)
                if size > LARGEST_TABLE:
                    raise UserError(f"{inner._file_path} has more than {LARGEST_TABLE >> 30} GiB: unpack the archive")
                copy.write(data)
            copy.seek(0)
            yield from inner.table(kind_of(name), cast(IO[bytes], copy), name)
