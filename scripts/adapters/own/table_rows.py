"""Rows of tables, one at a time: CSV and TSV, Parquet, Arrow files and streams. A row is an object of its columns.

Cells of a text table are texts; an empty one is None. In columns of turns and images a cell that holds a list or an
object, as JSON or as Python writes it, becomes that value.
"""

import ast
import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.adapters.own.byte_streams import unreadable
from scripts.adapters.own.json_rows import MAX_ROW, no_rows
from scripts.adapters.raw import Broken, RawRow, parsed
from scripts.common.errors import UserError

NESTED = frozenset({"messages", "conversations", "conversation", "history", "images", "image", "texts"})
"""Columns of text tables that may hold lists or objects."""

_DELIMITERS = ",;\t|"
_STATED = re.compile(r'"?sep=([^\w"])"?', re.IGNORECASE)
_BATCH_BYTES = 8 << 20
_MOST_ROWS = 1024
_ARROW_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"


def text_table_rows(
    stream: IO[bytes], file_path: Path, name: str, nested: Collection[str] = NESTED
) -> Iterator[RawRow]:
    """The rows of a table in CSV or TSV; the first line that is not empty has the names of its columns.

    A row with another number of cells than columns gives a `Broken` row: in most cases a delimiter, a quote or a line
    break in a text was not quoted, so that its cells are not those that were meant.

    Args:
        stream: the text, in UTF-8.
        file_path: the file, for errors.
        name: of the file; `.tsv` has tabs between cells, other files what their first line has (comma, semicolon, tab
            or bar), or says: Excel writes a line such as `sep=;` before the names of columns.
        nested: columns that may hold lists or objects.

    Raises:
        UserError: there are no columns or no rows, two columns have one name, a quote is never closed, or a line is
            too long.
    """
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    lines = _lines(text, file_path)
    first = next((line for line in lines if line.strip()), "")
    stated = _STATED.fullmatch(first.strip())
    if stated:
        first = next((line for line in lines if line.strip()), "")
        delimiter = stated[1]
    else:
        delimiter = "\t" if ".tsv" in name else max(_DELIMITERS, key=_outside_quotes(first).count)
    # The limit belongs to the process; nothing else here reads CSV files of users.
    csv.field_size_limit(MAX_ROW)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    columns: list[str] = []
    number = -1
    while True:
        line = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError(
                    f"{file_path}: a quote that is opened in the row at line {line + 1} is never closed: close it, or "
                    "double quotes that belong to a text"
                ) from None
            number += 1
            yield RawRow(str(number), Broken("invalid_csv", str(error)), name)
            continue
        if not cells:
            continue
        if not columns:
            columns = [cell.strip() for cell in cells]
            _check_columns([each for each in columns if each], file_path)
            continue
        number += 1
        if len(cells) != len(columns):
            detail = f"{len(cells)} cells, where the first line names {len(columns)} columns"
            yield RawRow(str(number), Broken("invalid_csv", detail), name)
            continue
        yield RawRow(str(number), _row(columns, cells, nested), name)
    if number < 0:
        raise no_rows(file_path, "there is at most a line with names of columns")


def _outside_quotes(line: str) -> str:
    return "".join(line.split('"')[::2])


def _lines(text: io.TextIOWrapper, file_path: Path) -> Iterator[str]:
    """The lines of a text; raises UserError if one is longer than a row may be: it would not fit into memory."""
    while line := text.readline(MAX_ROW):
        if len(line) == MAX_ROW:
            raise UserError(f"{file_path} has a line of more than {MAX_ROW >> 20} MiB: it is no table of rows")
        yield line


def _row(columns: list[str], cells: list[str], nested: Collection[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=True):
        # An index that pandas has written has no name.
        if column:
            row[column] = _nested(cell) if column in nested and cell.startswith(("[", "{")) else cell or None
    return row


def _nested(cell: str) -> Any:
    """The list or object that a cell holds; the text itself if it holds none."""
    try:
        return parsed(cell)[0]
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return cell


def _check_columns(columns: list[str], file_path: Path) -> None:
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise UserError(f"{file_path} has two columns with the name {repeated[0]!r}: rename one of them")
    if not columns:
        raise no_rows(file_path, "its first line names no columns")


def parquet_rows(file: Path | IO[bytes], file_path: Path, name: str) -> Iterator[RawRow]:
    """The rows of a Parquet file, read a few at a time: as many as have about 8 MB.

    Args:
        file: its path, or the file opened for reading at any position.
        file_path: the file, for errors.
        name: of the file, for rows.

    Raises:
        UserError: it is damaged, has two columns with one name, or no rows.
    """
    try:
        # Without its buffer, a whole row group would be read at once.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
            metadata = table.metadata
            _check_columns(table.schema_arrow.names, file_path)
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            size = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
            rows = max(1, min(_MOST_ROWS, int(_BATCH_BYTES / max(1, size))))
            yield from _batch_rows(table.iter_batches(rows, use_threads=False), file_path, name)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file_path, error) from None


def arrow_rows(file: Path | IO[bytes], file_path: Path, name: str) -> Iterator[RawRow]:
    """The rows of an Arrow IPC file or stream, one of its batches at a time; arguments and errors as `parquet_rows`."""
    try:
        with open(file, "rb") if isinstance(file, Path) else file as opened:
            start = opened.read(len(_ARROW_FILE))
            opened.seek(0)
            if start.startswith(_FEATHER_1):
                raise UserError(f"{file_path} has the first version of Feather, which is not read: write it as Parquet")
            if start == _ARROW_FILE:
                table = pa.ipc.open_file(opened)
                batches = (table.get_batch(number) for number in range(table.num_record_batches))
                _check_columns(table.schema.names, file_path)
                yield from _batch_rows(batches, file_path, name)
            else:
                stream = pa.ipc.open_stream(opened)
                _check_columns(stream.schema.names, file_path)
                yield from _batch_rows(stream, file_path, name)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file_path, error) from None


def _batch_rows(batches: Iterator[pa.RecordBatch], file_path: Path, name: str) -> Iterator[RawRow]:
    number = -1
    for batch in batches:
        rows = max(1, min(_MOST_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
        for start in range(0, batch.num_rows, rows):
            for row in _objects(batch.slice(start, rows)):
                number += 1
                yield RawRow(str(number), row, name)
    if number < 0:
        raise no_rows(file_path, "the table is empty")


def _objects(batch: pa.RecordBatch) -> list[Any]:
    """The rows of a batch as objects; a row with a text that is not UTF-8 is a `Broken` one."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [Broken("invalid_utf8", str(error))]
        return [row for number in range(batch.num_rows) for row in _objects(batch.slice(number, 1))]
