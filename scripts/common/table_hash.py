"""Hash of the values of a table, independent of the file or the memory layout that holds it.

Columns are hashed one after the other, each in its fixed binary form: numbers as little-endian bytes, strings as all
lengths and then all UTF-8 bytes, lists as all lengths and then their elements, structs field by field. No value becomes
a Python object, so that a million rows take a second.

So a column is a sequence of *sections* (the validity of the values, the lengths of the lists, ...), which follow from
its type alone. `table_sha256` hashes a table in memory, section by section. `TableHash` gets a table part by part:
it keeps the bytes of all sections in a temporary file until the end.
"""

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scripts.common.errors import mark_writing

Select = Callable[[pa.Array], pa.Array]
_PIECE = 1 << 20


class _Section(NamedTuple):
    """A part of the binary form of a column.

    Attributes:
        mark: bytes before it.
        select: the values of this section in a chunk of the column; values that are null are left out.
        data: their bytes.
        validity: whether it says which values are null; then it is left out, with its mark, where none is.
    """

    mark: bytes
    select: Select
    data: Callable[[pa.Array], Any]
    validity: bool = False


def table_sha256(table: pa.Table) -> str:
    """Hash of a table's logical content, as hex.

    It does not depend on chunks, slices, dictionary encoding, compression or the version of pyarrow. An empty field
    (null) differs from an empty text and from 0; NaN equals itself.

    Raises:
        ValueError: a column has a type without a fixed binary form, such as decimals or maps.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(f"{name}\0".encode())
        chunks = table[name].chunks or [pa.array([], table[name].type)]
        for section in _sections(table[name].type):
            if not section.validity or any(section.select(chunk).null_count for chunk in chunks):
                digest.update(section.mark)
                for chunk in chunks:
                    digest.update(section.data(section.select(chunk)))
    return digest.hexdigest()


class TableHash:
    """The `table_sha256` of a table that is never in memory as a whole; a context that closes its temporary file."""

    def __init__(self, schema: pa.Schema, table: Path) -> None:
        """Hash a table of `schema` that is written to `table`, in whose folder the temporary file lies."""
        self._columns = [(field.name, _sections(field.type)) for field in schema]
        self._table = table
        self._file = tempfile.TemporaryFile(dir=table.parent)  # noqa: SIM115 - `__exit__` closes it
        self._places: list[list[tuple[int, int]]] = [[] for _, sections in self._columns for _ in sections]
        self._with_nulls: set[int] = set()
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what could not be written has been reported
            self._file.close()

    def update(self, part: pa.RecordBatch | pa.Table) -> None:
        """Add the rows of `part`, which has the schema.

        Raises:
            OSError: the temporary file cannot be written; `filename` is that of the table.
            ValueError: see `table_sha256`.
        """
        numbers = count()
        try:
            for name, sections in self._columns:
                column = part.column(name)
                chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
                for section in sections:
                    self._add(next(numbers), section, chunks)
            self._file.flush()
        except OSError as error:
            mark_writing(error, self._table)
            raise

    def _add(self, number: int, section: _Section, chunks: list[pa.Array]) -> None:
        for chunk in chunks:
            values = section.select(chunk)
            if section.validity and values.null_count:
                self._with_nulls.add(number)
            size = self._file.write(section.data(values))
            self._places[number].append((self._end, size))
            self._end += size

    def hexdigest(self) -> str:
        """The hash of all rows that were added."""
        digest = hashlib.sha256()
        numbers = count()
        for name, sections in self._columns:
            digest.update(f"{name}\0".encode())
            for section in sections:
                number = next(numbers)
                if not section.validity or number in self._with_nulls:
                    digest.update(section.mark)
                    for offset, size in self._places[number]:
                        self._feed(digest, offset, size)
        return digest.hexdigest()

    def _feed(self, digest: "hashlib._Hash", offset: int, size: int) -> None:
        self._file.seek(offset)
        while size:
            data = self._file.read(min(size, _PIECE))
            digest.update(data)
            size -= len(data)


def _sections(kind: pa.DataType, select: Select = lambda chunk: chunk) -> list[_Section]:
    """The sections of a column of type `kind`; `select` gives its values in a chunk of the whole column."""
    if pa.types.is_dictionary(kind):
        return _sections(kind.value_type, lambda chunk: select(chunk).dictionary_decode())

    def present(chunk: pa.Array) -> pa.Array:
        values = select(chunk)
        return values.drop_null() if values.null_count else values

    sections = [_Section(b"valid\0", select, lambda values: _numbers(values.is_valid()), validity=True)]
    # Not str(kind): it holds the name of list elements, which a file does not keep.
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        sections.append(_Section(b"list\0", present, _list_lengths))
        sections += _sections(kind.value_type, lambda chunk: present(chunk).flatten())
    elif pa.types.is_struct(kind):
        for number, field in enumerate(kind):
            sections.append(_Section(f"{field.name}\0".encode(), present, lambda values: b""))
            sections += _sections(field.type, lambda chunk, number=number: present(chunk).flatten()[number])  # type: ignore[misc]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        sections += [_Section(b"string\0", present, _byte_lengths), _Section(b"", present, _bytes)]
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        sections += [_Section(b"binary\0", present, _byte_lengths), _Section(b"", present, _bytes)]
    else:
        sections.append(_Section(f"{kind}\0".encode(), present, _numbers))
    return sections


def _list_lengths(values: pa.Array) -> Any:
    return _numbers(pc.list_value_length(values).cast(pa.int32()))


def _byte_lengths(values: pa.Array) -> Any:
    return _numbers(pc.binary_length(values).cast(pa.int32()))


def _bytes(values: pa.Array) -> Any:
    """All texts of an array, one after the other."""
    _, starts, data = values.buffers()
    if not len(values) or data is None:
        return b""
    large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    offsets = np.frombuffer(starts, np.int64 if large else np.int32)
    return memoryview(data)[offsets[values.offset] : offsets[values.offset + len(values)]]


def _numbers(values: pa.Array) -> Any:
    numbers = values.to_numpy(zero_copy_only=False)
    if not len(numbers):
        return b""
    if numbers.dtype == object:
        raise ValueError(f"columns of the type {values.type} cannot be hashed")
    return np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")).view(np.uint8).data
