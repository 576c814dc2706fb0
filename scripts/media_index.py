"""Join the index parts of a source's shards into one index, and describe it in a small manifest.

Reads all shards of `media/<source>` and their parts. Writes `index.parquet` (every readable image, sorted by key),
`rejected.parquet` (all others, with the reason) and, last, `manifest.json`, the only file that later rules depend on.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from scripts.adapters.raw import SOURCE_MANIFEST
from scripts.adapters.statistics import summary
from scripts.common.cli import hide_pandas, parser
from scripts.common.errors import UserError, damaged, run_program
from scripts.common.files import open_table, read_json, read_table, write_json, write_table
from scripts.common.table_hash import table_sha256
from scripts.media.parts import PART_SCHEMA, SHARD_BYTES, SHARD_SHA256, part_path
from scripts.media.store import INDEX, INDEX_SCHEMA, MANIFEST, REJECTED, REJECTED_SCHEMA
from scripts.media.tarshard import read_index, shard_name


def write_index(source: str, shards: int, raw: Path, out: Path, tolerance: float = 1.0) -> dict[str, Any]:
    """Join the parts of all shards; return the manifest.

    Args:
        source: its name.
        shards: number of its shards.
        raw: its folder `raw/<source>`.
        out: its folder `media/<source>`, which contains the shards and their parts.
        tolerance: share of images that may be unreadable, in [0, 1].

    Raises:
        UserError: a shard or part is missing, they do not belong together, or too few images can be read.
    """
    names = [shard_name(source, index, shards) for index in range(shards)]
    parts = [_part(out, name) for name in names]
    table = pa.concat_tables(parts).sort_by("key")
    readable = pc.is_null(table["reason"])
    index = table.filter(readable).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    rejected = table.filter(pc.invert(readable)).select(REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA).sort_by("path")
    reasons = _counts(rejected["reason"])
    source_manifest = read_json(raw / SOURCE_MANIFEST)
    # A dataset of your own may have no images at all.
    if not index.num_rows and (table.num_rows or "dataset" not in source_manifest):
        raise UserError(f"source {source!r}: none of its {rejected.num_rows} images can be read: {reasons}")
    if rejected.num_rows > tolerance * table.num_rows:
        raise UserError(
            f"source {source!r}: {rejected.num_rows} of {table.num_rows} images cannot be read, more than the share of "
            f"{tolerance:g} that `tolerance.images` allows: {reasons}. "
            f"For example {rejected['path'][0].as_py()}. Get the images again, or raise the tolerance"
        )
    write_table(out / INDEX, index)
    write_table(out / REJECTED, rejected)
    counts = [pc.sum(pc.is_null(part["reason"])).as_py() or 0 for part in parts]
    sizes = {name: index[name].to_numpy() for name in ("width", "height", "length")}
    manifest = {
        "v": 1,
        "source": source,
        "licence": source_manifest["licence"],
        "terms": source_manifest["terms"],
        "images": index.num_rows,
        "rejected": reasons,
        "flags": _counts(pc.list_flatten(index["flags"])),
        "shards": [_shard(out, name, count) for name, count in zip(names, counts, strict=True)],
        "sizes": {name: summary(values) for name, values in sizes.items()},
        "index_sha256": table_sha256(index),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()}


def _part(out: Path, name: str) -> pa.Table:
    try:
        return read_table(part_path(out, name), schema=PART_SCHEMA)
    except FileNotFoundError:
        raise UserError(f"{part_path(out, name)} does not exist: build that shard first") from None


def _shard(out: Path, name: str, images: int) -> dict[str, Any]:
    """The manifest's entry of a shard, checked against its index and its part."""
    samples = len(read_index(out / name)) - 1
    with open_table(part_path(out, name)) as part:
        metadata = part.schema_arrow.metadata
    expected_size, sha256 = int(metadata[SHARD_BYTES]), metadata[SHARD_SHA256].decode()
    try:
        size = (out / name).stat().st_size
    except FileNotFoundError:
        raise damaged(out / name, "is missing") from None
    if (samples, size) != (images, expected_size):
        raise damaged(out / name, "is not the shard that its part describes")
    return {"name": name, "images": images, "bytes": size, "sha256": sha256}


def main() -> None:
    """Run the program."""
    hide_pandas()
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, help="name of the source of the shards")
    arguments.add_argument("--raw", type=Path, required=True, help="raw/<source>, as written by scripts.fetch")
    arguments.add_argument(
        "--tolerance", type=float, default=0.5, help="share of images that may be unreadable (default: %(default)s)"
    )
    arguments.add_argument("--shards", type=int, required=True, help="number of shards of the source")
    arguments.add_argument(
        "--out", type=Path, required=True, help="folder of the shards, to write into: media/<source>"
    )
    args = arguments.parse_args()
    manifest = write_index(args.source, args.shards, args.raw, args.out, args.tolerance)
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest["rejected"].items()))
    print(f"{args.source}: {manifest['images']} images in {args.shards} shards; rejected: {rejected or 'none'}")
    if rejected:
        lost = sum(manifest["rejected"].values())
        print(
            f"WARNING: {lost} of {lost + manifest['images']} images of {args.source} "
            f"({lost / (lost + manifest['images']):.1%}) are not used: {rejected}. All: {args.out / REJECTED}"
        )


if __name__ == "__main__":
    run_program(main)
