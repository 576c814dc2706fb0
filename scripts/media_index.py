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

from scripts.adapters.raw import CARD
from scripts.adapters.statistics import summary
from scripts.common.cli import leave_out_pandas, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json, read_table, table_sha256, write_json, write_table
from scripts.media.parts import PART_SCHEMA, SHARD_BYTES, SHARD_SHA256, part_path
from scripts.media.store import INDEX, INDEX_SCHEMA, MANIFEST, REJECTED, REJECTED_SCHEMA
from scripts.media.tarshard import read_index, shard_name


def write_index(source: str, shards: int, raw: Path, out: Path, tolerated: float = 1.0) -> dict:
    """Join the parts of `shards` shards in `out`; return the manifest.

    Args:
        tolerated: the share of images that may be unreadable.

    Raises:
        UserError: a shard or part is absent, or they do not belong together, or too few images can be read.
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
    if rejected.num_rows > tolerated * table.num_rows:
        raise UserError(
            f"source {source!r}: {rejected.num_rows} of {table.num_rows} images cannot be read, more than the share of "
            f"{tolerated:g} that `tolerance.images` allows: {dict(reasons)}. "
            f"For example {rejected['path'][0].as_py()}. Get the images again, or raise the tolerance"
        )
    write_table(out / INDEX, index)
    write_table(out / REJECTED, rejected)
    counts = [pc.sum(pc.is_null(part["reason"])).as_py() or 0 for part in parts]
    described = zip(names, counts, strict=True)
    card = read_json(raw / CARD)
    numbers = {name: index[name].to_numpy() for name in ("width", "height", "length")}
    manifest = {
        "v": 1,
        "source": source,
        "licence": card["licence"],
        "terms": card["terms"],
        "images": index.num_rows,
        "rejected": dict(reasons),
        "flags": dict(Counter(flag for flags in index["flags"].to_pylist() for flag in flags)),
        "shards": [_shard(out, name, count) for name, count in described],
        "sizes": {name: summary(values) for name, values in numbers.items()},
        "index_sha256": table_sha256(index),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _part(out: Path, name: str) -> pa.Table:
    try:
        return read_table(part_path(out, name), schema=PART_SCHEMA)
    except FileNotFoundError:
        raise UserError(f"{part_path(out, name)} does not exist: build that shard first") from None


def _shard(out: Path, name: str, images: int) -> dict:
    samples = len(read_index(out / name)) - 1
    said = pq.read_schema(part_path(out, name)).metadata
    size, sha256 = int(said[SHARD_BYTES]), said[SHARD_SHA256].decode()
    try:
        there = (out / name).stat().st_size
    except FileNotFoundError:
        raise UserError(f"{out / name} does not exist: build the shard again") from None
    if (samples, there) != (images, size):
        raise UserError(f"{out / name} is not the shard that its part describes: build the shard again")
    return {"name": name, "images": images, "bytes": size, "sha256": sha256}


def main() -> None:
    """Run the program."""
    leave_out_pandas()
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, help="whose shards")
    arguments.add_argument("--raw", type=Path, required=True, help="raw/<source>, as written by scripts.fetch")
    arguments.add_argument("--tolerance", type=float, default=1.0, help="share of images that may be unreadable")
    arguments.add_argument("--shards", type=int, required=True, help="how many shards the source has")
    arguments.add_argument("--out", type=Path, required=True, help="the folder of the shards: media/<source>")
    args = arguments.parse_args()
    manifest = write_index(args.source, args.shards, args.raw, args.out, args.tolerance)
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest["rejected"].items()))
    print(f"{args.source}: {manifest['images']} images in {args.shards} shards; rejected: {rejected or 'none'}")


if __name__ == "__main__":
    run_program(main)
