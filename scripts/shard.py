"""Put one shard's share of a source's images into a tar shard, after decoding each of them.

Reads `raw/<source>` as fetch left it; images inside of archives are read from there. Writes, below --out,
`<source>-00003-of-00016.tar` with its `.idx`, and the shard's part of the index,
`parts/<source>-00003-of-00016.parquet`, which lists readable and rejected images. Shards are independent of each other
and may be built in any order, in parallel, on several machines.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from scripts.adapters.raw import FILES, IMAGES, IMAGES_SCHEMA, LISTING, changed
from scripts.common.cli import leave_out_pandas, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import bytes_sha256, read_table, write_table
from scripts.common.progress import track
from scripts.media.containers import ImageEntry
from scripts.media.image_check import UnreadableImageError, check_image
from scripts.media.keys import keys_of
from scripts.media.parts import PART_SCHEMA, SHARD_BYTES, SHARD_SHA256, part_path
from scripts.media.raw_images import RawImageReader
from scripts.media.tarshard import ShardWriter, shard_name


def candidates(raw: Path) -> list[tuple[str, ImageEntry]]:
    """The images of a source and their keys, sorted by key."""
    columns = read_table(raw / IMAGES, schema=IMAGES_SCHEMA).to_pydict()
    entries = list(map(ImageEntry._make, zip(*columns.values(), strict=True)))
    # Two members of an archive may claim one path; only the first can have it, and the others need keys for their
    # reasons.
    keys = keys_of(entry.path for entry in entries)
    return sorted((keys[entry.path], entry) for entry in entries)


def share(rows: list[tuple[str, ImageEntry]], shards: int, index: int) -> list[tuple[str, ImageEntry]]:
    """Those of `rows` that belong to shard `index`: an image goes to that equal part of all bytes where it begins."""
    total = max(1, sum(entry.length for _, entry in rows))
    chosen, before = [], 0
    for key, entry in rows:
        if min(before * shards // total, shards - 1) == index:
            chosen.append((key, entry))
        before += entry.length
    return chosen


def write_shard(source: str, raw: Path, shards: int, index: int, out: Path) -> pa.Table:
    """Build shard `index` of `shards` and return its part of the index.

    Raises:
        UserError: a file is not what fetch has seen.
    """
    name = shard_name(source, index, shards)
    rows = share(candidates(raw), shards, index)
    listing = read_table(raw / LISTING).to_pylist()
    hashes = {row["path"]: row["sha256"] for row in listing}
    originals = RawImageReader(
        raw / FILES, {row["path"]: row["bytes"] for row in listing}, [entry for _, entry in rows]
    )
    part = []
    with ShardWriter(out / name) as writer:
        for key, entry in track(rows, f"{name}: images checked", len(rows)):
            part.append(_add(writer, originals, key, entry, index, hashes.get(entry.path)))
    originals.close()
    table = pa.Table.from_pylist(part, PART_SCHEMA)
    table = table.replace_schema_metadata({SHARD_SHA256: writer.sha256, SHARD_BYTES: str(writer.bytes)})
    write_table(part_path(out, name), table)
    return table


def _add(
    writer: ShardWriter, originals: RawImageReader, key: str, entry: ImageEntry, shard: int, listed: str | None
) -> dict[str, Any]:
    """Check one image and append it if it is readable; return its row of the part."""
    row: dict[str, Any] = {"key": key, "path": entry.path, "shard": shard, "length": entry.length, "sha256": ""}
    try:
        data = originals.read(entry)
        row |= {"length": len(data), "sha256": bytes_sha256(data)}
        if listed not in (None, row["sha256"]):
            raise changed(originals.root / entry.path)
        picture = check_image(data, entry.path)
    except UnreadableImageError as fault:
        return row | {"reason": fault.reason, "detail": fault.detail}
    offset = writer.add(key, [(picture.format, data)])[0]
    return row | vars(picture) | {"offset": offset}


def main() -> None:
    """Run the program."""
    leave_out_pandas()
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, help="whose images")
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
