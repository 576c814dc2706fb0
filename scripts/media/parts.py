"""The part of a media index that one shard leaves behind: its columns, its place, and what it records of its shard."""

from pathlib import Path

import pyarrow as pa

from scripts.media.store import INDEX_SCHEMA

SHARD_SHA256, SHARD_BYTES = b"shard_sha256", b"shard_bytes"
"""What a part says of its shard, so that nobody has to read the shard again to know it."""

PART_SCHEMA = INDEX_SCHEMA.append(pa.field("reason", pa.string())).append(pa.field("detail", pa.string()))
"""The index and, for a rejected image, why; `reason` is null for a readable one."""


def part_path(out: Path, shard: str) -> Path:
    """Where the part of the index that describes `shard` lies."""
    return out / "parts" / Path(shard).with_suffix(".parquet").name
