"""Files that are either whole or absent, and bytes that depend on nothing but their content.

Every output of every program goes through `atomic`: it is written beside its final name, flushed to the disk and
renamed. JSON is canonical (sorted keys, no times, no absolute paths), Parquet is written with fixed options, so that
equal inputs give equal hashes.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.common.errors import UserError

_CHUNK = 1 << 20

# mkstemp makes files private, so they are opened again by hand. The only way to learn the umask is to set it, which
# must not happen while other threads write files: here it does once.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic(path: str | Path, mode: str = "wb", **options: Any) -> Iterator[IO]:
    """Open a temporary file beside `path` and rename it to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    try:
        with os.fdopen(handle, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_UMASK)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: one text per value, fit for hashing and for comparing as a parameter."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: the file is absent or is not JSON; the message names the file and, for broken JSON, the line.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write canonical_json, indented JSON atomically."""
    with atomic(path, "w") as file:
        json.dump(value, file, sort_keys=True, indent=1, ensure_ascii=False)
        file.write("\n")


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write a Parquet file atomically, with options fixed so that equal tables give equal bytes (for one pyarrow
    version)."""
    with atomic(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=65536, store_schema=True)


def read_table(path: str | Path, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Read a Parquet file: all of it, some `columns`, or the columns of `schema` as its types.

    For files of our own. `pyarrow.parquet.read_table` reads folders of them and much else; importing what it takes to
    do so costs more than reading most of ours.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no Parquet file, or has other columns.
    """
    wanted = schema.names if schema else columns
    with open(path, "rb") as file:
        try:
            with pq.ParquetFile(file) as stored:
                absent = sorted(set(wanted or ()) - set(stored.schema_arrow.names))
                if absent:
                    raise UserError(f"{path} has no column {absent[0]!r}: build it again")
                table = stored.read(wanted)
            # A file has its columns in its own order.
            table = table if wanted is None else table.select(wanted)
            return table.cast(schema) if schema else table
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is damaged or no Parquet file, build it again: {error}") from None


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk; a rename is there only once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def table_sha256(table: pa.Table) -> str:
    """Hash of a table's logical content: independent of chunks, compression and the pyarrow version's file layout."""
    digest = hashlib.sha256(canonical_json([[field.name, str(field.type)] for field in table.schema]).encode())
    for batch in table.combine_chunks().to_batches(max_chunksize=4096):
        digest.update(canonical_json(batch.to_pylist()).encode())
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def text_sha256(text: str) -> str:
    """Hash of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def bytes_sha256(data: bytes) -> str:
    """Hash of bytes."""
    return hashlib.sha256(data).hexdigest()
