"""Put one shard's share of a source's images into a tar shard, after decoding each of them.

Reads `raw/<source>` as fetch left it. Writes, below --out, `<source>-00003-of-00016.tar` with its `.idx`, and the
shard's part of the index, `parts/<source>-00003-of-00016.parquet`, which lists readable and rejected images. Shards are
independent of each other and may be built in any order, in parallel, on several machines.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.adapters.base import FILES, LISTING, read_listed
from scripts.common.errors import UserError, run_program
from scripts.common.files import write_table
from scripts.common.program import parser
from scripts.common.progress import track
from scripts.media.check import Unreadable, check_image
from scripts.media.keys import is_image, keys_of
from scripts.media.store import INDEX_SCHEMA
from scripts.media.tarshard import ShardWriter, shard_name
from scripts.sources import SOURCES

PART_SCHEMA = INDEX_SCHEMA.append(pa.field("reason", pa.string())).append(pa.field("detail", pa.string()))
"""The index and, for a rejected image, why; `reason` is null for a readable one."""


def part_path(out: Path, shard: str) -> Path:
    """Where the part of the index that describes `shard` lies."""
    return out / "parts" / Path(shard).with_suffix(".parquet").name


def candidates(source: str, raw: Path) -> list[dict]:
    """The images of a source sorted by key: rows with key, path, bytes and sha256."""
    listing = pq.read_table(raw / LISTING).to_pylist()
    rows = [row for row in listing if row["path"].startswith(SOURCES[source].folders) and is_image(row["path"])]
    keys = keys_of(row["path"] for row in rows)
    return sorted(({"key": keys[row["path"]], **row} for row in rows), key=lambda row: row["key"])


def share(rows: list[dict], shards: int, index: int) -> list[dict]:
    """Those of `rows` that belong to shard `index`: an image goes to that equal part of all bytes where it begins."""
    total = max(1, sum(row["bytes"] for row in rows))
    chosen, before = [], 0
    for row in rows:
        if min(before * shards // total, shards - 1) == index:
            chosen.append(row)
        before += row["bytes"]
    return chosen


def write_shard(source: str, raw: Path, shards: int, index: int, out: Path) -> pa.Table:
    """Build shard `index` of `shards` and return its part of the index.

    Raises:
        UserError: a file is not what fetch has seen.
    """
    name = shard_name(source, index, shards)
    rows = share(candidates(source, raw), shards, index)
    part = []
    with ShardWriter(out / name) as writer:
        for row in track(rows, f"{name}: images checked", len(rows)):
            part.append(_add(writer, raw / FILES / row["path"], row, index))
    table = pa.Table.from_pylist(part, PART_SCHEMA)
    write_table(part_path(out, name), table)
    return table


def _add(writer: ShardWriter, place: Path, row: dict, shard: int) -> dict:
    """Check one image and append it if it is readable; return its row of the part."""
    data = read_listed(place, row["sha256"])
    entry = {"key": row["key"], "path": row["path"], "shard": shard, "length": len(data), "sha256": row["sha256"]}
    try:
        picture = check_image(data, row["path"])
    except Unreadable as fault:
        return entry | {"reason": fault.reason, "detail": fault.detail}
    offset = writer.add(row["key"], [(picture.format, data)])[0]
    return entry | vars(picture) | {"offset": offset}


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, choices=sorted(SOURCES), help="whose images")
    arguments.add_argument("--raw", type=Path, required=True, help="raw/<source>, as written by scripts.fetch")
    arguments.add_argument("--shards", type=int, required=True, help="how many shards the source has")
    arguments.add_argument("--index", type=int, required=True, help="which one to build, from 0")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write into: media/<source>")
    args = arguments.parse_args()
    if not 0 <= args.index < args.shards:
        raise UserError(f"--index {args.index} is not one of {args.shards} shards, which are counted from 0")
    table = write_shard(args.source, args.raw, args.shards, args.index, args.out)
    images = table["reason"].null_count
    print(f"{shard_name(args.source, args.index, args.shards)}: {images} images, {table.num_rows - images} rejected")


if __name__ == "__main__":
    run_program(main)
