"""The list of a source's files and images, as fetch writes it once and every shard job reads its part of it.

`images.parquet` is sorted by key. Its column `start` counts the bytes of all images before a row, so that a shard's
share, which is given by bytes, is a range of it, and a job reads only the row groups of that range. `files.parquet` is
sorted by path.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.common.errors import UserError
from scripts.common.row_groups import read_between, read_matching
from scripts.media.containers import FILE, ImageEntry
from scripts.media.keys import keys_of

FILES_TABLE = "files.parquet"
IMAGES_TABLE = "images.parquet"

FILES_SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())])
ENTRY_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("container", pa.string()),
        ("kind", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("crc", pa.int64()),
        ("fault", pa.string()),
    ]
)
IMAGES_SCHEMA = pa.schema([("key", pa.string()), *ENTRY_SCHEMA, ("start", pa.int64())])
"""Key, the fields of `ImageEntry`, and the bytes of all images before this one."""

_TOTAL = b"bytes"
_AT_ONCE = 1 << 16
_LAST = np.iinfo(np.int64).max


def entries_table(entries: Iterable[ImageEntry]) -> pa.Table:
    """Entries as a table, in their order; they become columns a few at a time, so that few are Python objects."""
    remaining = iter(entries)
    batches = []
    while chunk := list(islice(remaining, _AT_ONCE)):
        columns = zip(*chunk, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, ENTRY_SCHEMA, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=ENTRY_SCHEMA))
    return pa.Table.from_batches(batches, ENTRY_SCHEMA)


def separate_images(files: pa.Table) -> pa.Table:
    """The entries of images that are files, from their rows of the table of files."""
    rows = files.num_rows
    same = {"container": "", "kind": FILE, "offset": 0, "crc": -1, "fault": ""}
    columns = {"path": files["path"], "length": files["bytes"]}
    columns |= {name: pa.repeat(pa.scalar(value, ENTRY_SCHEMA.field(name).type), rows) for name, value in same.items()}
    return pa.table([columns[name] for name in ENTRY_SCHEMA.names], schema=ENTRY_SCHEMA)


def image_listing(entries: pa.Table) -> pa.Table:
    """The table of images: `entries` sorted by key, with the column `start`.

    Two members of an archive may have the same path and so the same key; they are ordered by their other columns.
    """
    keys = keys_of(pa.concat_arrays(entries["path"].chunks or [pa.array([], pa.string())]))
    order = pc.sort_indices(keys)
    keys = keys.take(order)
    table = entries.take(order).add_column(0, IMAGES_SCHEMA.field("key"), keys)
    if pc.any(pc.equal(keys[1:], keys[:-1])).as_py():
        table = table.sort_by([(name, "ascending") for name in table.column_names])
    ends = np.cumsum(table["length"].to_numpy(), dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends])
    table = table.append_column(IMAGES_SCHEMA.field("start"), pa.array(starts[:-1], pa.int64()))
    return table.cast(IMAGES_SCHEMA).replace_schema_metadata({_TOTAL: str(starts[-1])})


def share(raw: Path, shards: int, index: int) -> list[tuple[str, ImageEntry]]:
    """Key and entry of the images that belong to shard `index` of `shards`, sorted by key.

    The concatenated bytes of all images are cut into `shards` equal parts; an image belongs to the part in which it
    begins. An image without bytes at the very end belongs to the last part.

    Args:
        raw: `raw/<source>`, as written by fetch.
        shards: number of shards of the source.
        index: of the shard, from 0.

    Raises:
        UserError: the table is missing or damaged, or was written by an earlier version.
    """
    path = raw / IMAGES_TABLE
    total = max(1, _total_bytes(path))
    first = -(-index * total // shards)
    end = -(-(index + 1) * total // shards) if index + 1 < shards else _LAST
    columns = read_between(path, "start", first, end, IMAGES_SCHEMA).drop_columns("start").to_pydict()
    keys = columns.pop("key")
    return list(zip(keys, map(ImageEntry._make, zip(*columns.values(), strict=True)), strict=True))


def _total_bytes(path: Path) -> int:
    try:
        metadata = pq.read_schema(path).metadata or {}
        return int(metadata[_TOTAL])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: fetch first") from None
    except (KeyError, pa.ArrowException):
        raise UserError(f"{path} is damaged or of an earlier version: fetch again") from None


class ListedFile(NamedTuple):
    """A raw file as fetch has seen it; `sha256` is "" if it was not hashed, because its images will be."""

    path: str
    bytes: int
    sha256: str


def listed_files(raw: Path, paths: Iterable[str]) -> dict[str, ListedFile]:
    """Those of `paths` that fetch has listed in `raw`, by path."""
    table = read_matching(raw / FILES_TABLE, "path", paths, FILES_SCHEMA)
    return {file.path: file for file in map(ListedFile._make, zip(*table.to_pydict().values(), strict=True))}
