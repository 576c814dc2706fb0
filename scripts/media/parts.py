"""The index part that is written with every media shard: its columns, its path, and its metadata."""

from pathlib import Path

import pyarrow as pa

from scripts.media.store import INDEX_SCHEMA

SHARD_SHA256, SHARD_BYTES = b"shard_sha256", b"shard_bytes"
"""Metadata of a part: hash and size of its shard, so that the shard need not be read again."""

PART_SCHEMA = INDEX_SCHEMA.append(pa.field("reason", pa.string())).append(pa.field("detail", pa.string()))
"""The columns of the index, and why an image was rejected; `reason` is null for a readable one."""


def part_path(out: Path, shard: str) -> Path:
    """The path of the index part of `shard`, for the media folder `out`."""
    return out / "parts" / Path(shard).with_suffix(".parquet").name
