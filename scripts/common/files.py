"""Files that are either complete or absent, and whose bytes depend on nothing but their content.

Every output of every program goes through `atomic`: it is written beside its final name, flushed to disk and renamed.
JSON is canonical (sorted keys, no times, no absolute paths) and Parquet is written with fixed options, so that equal
inputs give equal hashes.

Tables are checked when they are read: every page of a Parquet file that `write_table` writes has its checksum (CRC-32),
as the format provides, and so has the footer, in the eight bytes before it, which belong to no page.
"""

import hashlib
import json
import os
import re
import socket
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from scripts.common.errors import UserError, damaged, mark_writing

if TYPE_CHECKING:
    # Most programs read JSON alone, and pyarrow is the largest of our dependencies.
    import pyarrow as pa
    import pyarrow.parquet as pq

_CHUNK = 1 << 20
_PARQUET: dict[str, Any] = {"compression": "zstd", "store_schema": True, "write_page_checksum": True}
_GROUP_ROWS = 65536
_GROUP_BYTES = 64 << 20
_FOOTER_MARK = b"FCRC"
_TAIL = struct.Struct("<I4s")
"""The end of a Parquet file: the length of its footer, and the magic bytes."""

TEMPORARY = re.compile(r"\..*\.(?P<pid>\d+)@(?P<host>[^/]*)\.[^.]+\.tmp", re.DOTALL)
"""Names of the temporary files of `atomic`: process and machine of their owner are part of them."""
_NAME_LENGTH = 100

# mkstemp makes files private, so their mode is set again below. The umask can be read only by setting it, which is not
# safe while other threads write files; so it is done once, on import.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic(path: str | Path, mode: str = "wb", **options: Any) -> Iterator[IO]:
    """Open a temporary file beside `path` and rename it to `path` when the block ends without an error.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=temporary_prefix(path), suffix=".tmp", dir=path.parent)
    except OSError as error:
        mark_writing(error, path)
        raise
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    try:
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_UMASK)
        os.replace(name, path)
    except BaseException as error:
        # Errors of `write` name no file. One that names another file was raised while reading that.
        if isinstance(error, OSError) and error.filename in (None, name, handle):
            mark_writing(error, path)
        Path(name).unlink(missing_ok=True)
        raise


def temporary_prefix(path: Path) -> str:
    """The beginning of the name of a temporary file for `path`, which names this process and machine."""
    return f".{path.name[:_NAME_LENGTH]}.{os.getpid()}@{socket.gethostname()}."


def owner_of_temporary(name: str) -> tuple[int, str]:
    """Process id and machine of the program that writes the temporary file `name`.

    Raises:
        ValueError: it is no temporary file of `atomic`.
    """
    match = TEMPORARY.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is not the name of a temporary file")
    return int(match["pid"]), match["host"]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal texts, for hashes and for rule parameters."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse_json(data: str | bytes, name: str | Path) -> Any:
    """Parse JSON; `name` is what error messages call it.

    Raises:
        UserError: it is not JSON, or has a number of thousands of digits or thousands of nested brackets.
    """
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not valid JSON: {error}") from None
    except ValueError:
        # Python limits the digits of an integer, because converting them takes quadratic time.
        raise UserError(f"{name} is JSON with a number of thousands of digits, which nothing here can be") from None
    except RecursionError:
        raise UserError(f"{name} is JSON that is nested too deeply") from None


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: the file is absent or is not JSON; the message names the file and, for broken JSON, the line.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    return parse_json(data, path)


def read_json_lines(path: str | Path) -> list[Any]:
    """Parse a file of one JSON value per line; empty lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: a line is not JSON; the message names file and line.
    """
    lines = Path(path).read_bytes().split(b"\n")
    return [parse_json(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with sorted keys, atomically."""
    with atomic(path, "w") as file:
        json.dump(value, file, sort_keys=True, indent=1, ensure_ascii=False)
        file.write("\n")


def write_table(path: str | Path, table: "pa.Table") -> None:
    """Write a Parquet file atomically; with one version of pyarrow, equal tables give equal bytes."""
    import pyarrow.parquet as pq

    with atomic(path, "w+b") as file:
        pq.write_table(table, file, row_group_size=_GROUP_ROWS, **_PARQUET)
        _check_footer(file)


class TableWriter:
    """Writes a Parquet file in parts, see `writing_table`."""

    def __init__(self, parquet: "pq.ParquetWriter", schema: "pa.Schema") -> None:
        self._parquet, self._schema = parquet, schema
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, batch: "pa.RecordBatch") -> None:
        """Add rows."""
        if self._rows + batch.num_rows > _GROUP_ROWS:
            self.flush()
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows == _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that were added as a row group."""
        import pyarrow as pa

        if self._batches:
            self._parquet.write_table(pa.Table.from_batches(self._batches, self._schema), _GROUP_ROWS)
        self._batches, self._rows, self._bytes = [], 0, 0


@contextmanager
def writing_table(path: str | Path, schema: "pa.Schema") -> Iterator[TableWriter]:
    """Write a Parquet file atomically from batches of rows, of which one row group (64 MB and a batch) is in memory.

    Where batches fill row groups exactly, its bytes are those that `write_table` writes.
    """
    import pyarrow.parquet as pq

    with atomic(path, "w+b") as file:
        with pq.ParquetWriter(file, schema, **_PARQUET) as parquet:
            writer = TableWriter(parquet, schema)
            yield writer
            writer.flush()
        _check_footer(file)


def _check_footer(file: IO[bytes]) -> None:
    """Put the checksum of a Parquet file's footer before it: readers find the footer from the end of the file."""
    file.seek(-_TAIL.size, os.SEEK_END)
    length = _TAIL.unpack(file.read())[0]
    start = file.seek(-length - _TAIL.size, os.SEEK_END)
    footer = file.read()
    file.seek(start)
    file.write(_FOOTER_MARK + struct.pack("<I", zlib.crc32(footer)) + footer)


def _footer_is_whole(file: IO[bytes]) -> bool:
    """Whether a footer has its checksum; files of other programs have none, and pass."""
    size = file.seek(0, os.SEEK_END)
    if size < _TAIL.size:
        return False
    file.seek(size - _TAIL.size)
    length, magic = _TAIL.unpack(file.read())
    start = size - _TAIL.size - length - 8
    if magic != b"PAR1" or start < 0:
        return False
    file.seek(start)
    mark, checksum = struct.unpack("<4sI", file.read(8))
    return mark != _FOOTER_MARK or checksum == zlib.crc32(file.read())


@contextmanager
def open_table(path: str | Path) -> Iterator["pq.ParquetFile"]:
    """Open a Parquet file that one of our programs wrote, to read parts of it; what is read is checked.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged or not a Parquet file; raised where it is read, inside the block, too.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(path, "rb") as file:
        try:
            if not _footer_is_whole(file):
                raise damaged(path, "is damaged or not a Parquet file: its footer does not have its checksum")
            file.seek(0)
            with pq.ParquetFile(file, page_checksum_verification=True) as stored:
                yield stored
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise damaged(path, f"is damaged or not a Parquet file ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_table(path: str | Path, columns: list[str] | None = None, schema: "pa.Schema | None" = None) -> "pa.Table":
    """Read a Parquet file: all columns, some `columns`, or the columns of `schema` cast to its types.

    `pyarrow.parquet.read_table` also reads folders and remote files, and importing its machinery takes longer than
    reading most of our files.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged or not Parquet, or lacks a column.
    """
    names = schema.names if schema else columns
    with open_table(path) as stored:
        absent = sorted(set(names or ()) - set(stored.schema_arrow.names))
        if absent:
            raise damaged(path, f"has no column {absent[0]!r}: it is damaged, or of another version of this project")
        table = stored.read(names)
        # `read` returns columns in the order of the file.
        table = table if names is None else table.select(names)
        return table.cast(schema) if schema else table


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk (fsync); a rename is durable once its folder is flushed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file, as hex; the file is read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def text_sha256(text: str) -> str:
    """The sha256 of a text's UTF-8 bytes, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def bytes_sha256(data: bytes) -> str:
    """The sha256 of bytes, as hex."""
    return hashlib.sha256(data).hexdigest()
