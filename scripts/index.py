"""Join the parts that the shards of a source left behind into one index, and describe the whole in a small manifest.

Reads all shards of `media/<source>` and their parts. Writes `index.parquet` (every readable image, sorted by key),
`rejected.parquet` (every other one, with the reason) and, last, `manifest.json`, which is all that later rules depend
on.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.common.errors import UserError, run_program
from scripts.common.files import file_sha256, table_sha256, write_json, write_table
from scripts.common.program import parser
from scripts.common.progress import track
from scripts.media.store import INDEX, INDEX_SCHEMA, MANIFEST, REJECTED, REJECTED_SCHEMA
from scripts.media.tarshard import read_index, shard_name
from scripts.shard import PART_SCHEMA, part_path
from scripts.sources import SOURCES


def write_index(source: str, shards: int, out: Path) -> dict:
    """Join the parts of `shards` shards in `out`; return the manifest.

    Raises:
        UserError: a shard or part is absent, or they do not belong together, or no image at all can be read.
    """
    names = [shard_name(source, index, shards) for index in range(shards)]
    parts = [_part(out, name) for name in names]
    table = pa.concat_tables(parts).sort_by("key")
    good = pc.is_null(table["reason"])
    index = table.filter(good).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    rejected = table.filter(pc.invert(good)).select(REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA).sort_by("path")
    reasons = Counter(rejected["reason"].to_pylist())
    if not index.num_rows:
        raise UserError(f"source {source!r}: none of its {rejected.num_rows} images can be read: {dict(reasons)}")
    write_table(out / INDEX, index)
    write_table(out / REJECTED, rejected)
    counts = [pc.sum(pc.is_null(part["reason"])).as_py() or 0 for part in parts]
    listed = track(zip(names, counts, strict=True), "shards hashed", shards)
    manifest = {
        "v": 1,
        "source": source,
        "licence": SOURCES[source].licence,
        "images": index.num_rows,
        "rejected": dict(reasons),
        "shards": [_shard(out, name, count) for name, count in listed],
        "index_sha256": table_sha256(index),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _part(out: Path, name: str) -> pa.Table:
    try:
        return pq.read_table(part_path(out, name), schema=PART_SCHEMA)
    except FileNotFoundError:
        raise UserError(f"{part_path(out, name)} does not exist: build that shard first") from None


def _shard(out: Path, name: str, images: int) -> dict:
    samples = len(read_index(out / name)) - 1
    if samples != images:
        raise UserError(f"{out / name} holds {samples} images, its part lists {images}: build the shard again")
    try:
        return {"name": name, "images": images, "bytes": (out / name).stat().st_size, "sha256": file_sha256(out / name)}
    except FileNotFoundError:
        raise UserError(f"{out / name} does not exist: build the shard again") from None


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, choices=sorted(SOURCES), help="whose shards")
    arguments.add_argument("--shards", type=int, required=True, help="how many shards the source has")
    arguments.add_argument("--out", type=Path, required=True, help="the folder of the shards: media/<source>")
    args = arguments.parse_args()
    manifest = write_index(args.source, args.shards, args.out)
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest["rejected"].items()))
    print(f"{args.source}: {manifest['images']} images in {args.shards} shards; rejected: {rejected or 'none'}")


if __name__ == "__main__":
    run_program(main)
