"""Files that are either complete or absent, and whose bytes depend on nothing but their content.

Every output of every program goes through `atomic`: it is written beside its final name, flushed to disk and renamed.
JSON is canonical (sorted keys, no times, no absolute paths) and Parquet is written with fixed options, so that equal
inputs give equal hashes.
"""

import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from scripts.common.errors import UserError

if TYPE_CHECKING:
    # Most programs read JSON alone, and pyarrow is the largest of our dependencies.
    import pyarrow as pa

_CHUNK = 1 << 20

TEMPORARY = re.compile(r"\..*\.(?P<pid>\d+)@(?P<host>[^/]*)\.[^.]+\.tmp", re.DOTALL)
"""Names of the temporary files of `atomic`: process and machine of their owner are part of them."""
_NAME_LENGTH = 100

# mkstemp makes files private, so their mode is set again below. The umask can be read only by setting it, which is not
# safe while other threads write files; so it is done once, on import.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic(path: str | Path, mode: str = "wb", **options: Any) -> Iterator[IO]:
    """Open a temporary file beside `path` and rename it to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=temporary_prefix(path), suffix=".tmp", dir=path.parent)
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
    """Write indented JSON with sorted keys, atomically."""
    with atomic(path, "w") as file:
        json.dump(value, file, sort_keys=True, indent=1, ensure_ascii=False)
        file.write("\n")


def write_table(path: str | Path, table: "pa.Table") -> None:
    """Write a Parquet file atomically; with one version of pyarrow, equal tables give equal bytes."""
    import pyarrow.parquet as pq

    with atomic(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=65536, store_schema=True)


def read_table(path: str | Path, columns: list[str] | None = None, schema: "pa.Schema | None" = None) -> "pa.Table":
    """Read a Parquet file: all columns, some `columns`, or the columns of `schema` cast to its types.

    `pyarrow.parquet.read_table` also reads folders and remote files, and importing its machinery takes longer than
    reading most of our files.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is not Parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = schema.names if schema else columns
    with open(path, "rb") as file:
        try:
            with pq.ParquetFile(file) as stored:
                absent = sorted(set(names or ()) - set(stored.schema_arrow.names))
                if absent:
                    raise UserError(f"{path} has no column {absent[0]!r}: build it again")
                table = stored.read(names)
            # `read` returns columns in the order of the file.
            table = table if names is None else table.select(names)
            return table.cast(schema) if schema else table
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is damaged or not a Parquet file, build it again: {error}") from None


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
