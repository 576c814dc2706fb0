"""Write one tar shard with its share of a source's images, each of which is decoded as a check.

Reads `raw/<source>` as written by fetch; images inside of archives are read from there. Writes, below --out,
`<source>-00003-of-00016.tar` with its `.idx`, and the shard's part of the index,
`parts/<source>-00003-of-00016.parquet`, which lists readable and rejected images. Shards are independent of each other
and can be built in any order, in parallel, on several machines.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from scripts.adapters.raw import DATA_LINK, SOURCE_MANIFEST, changed, own_images
from scripts.common.cli import hide_pandas, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import bytes_sha256, read_json, write_table
from scripts.common.progress import track
from scripts.media.containers import EMBEDDED, ImageEntry
from scripts.media.image_check import check_image
from scripts.media.listing import listed_files, share
from scripts.media.opening import UnreadableImageError
from scripts.media.parts import PART_SCHEMA, SHARD_BYTES, SHARD_SHA256, part_path
from scripts.media.raw_images import ImagesInRows, RawImageReader
from scripts.media.tarshard import ShardWriter, shard_name


def write_shard(source: str, raw: Path, shards: int, index: int, out: Path) -> pa.Table:
    """Build shard `index` of `shards` and return its part of the index.

    Raises:
        UserError: a file has changed since fetch has listed it.
    """
    name = shard_name(source, index, shards)
    rows = share(raw, shards, index)
    listed = listed_files(raw, {entry.container or entry.path for _, entry in rows})
    sizes = {path: file.bytes for path, file in listed.items()}
    hashes = {path: file.sha256 for path, file in listed.items() if file.sha256}
    in_rows = _images_in_rows(raw) if any(entry.kind == EMBEDDED for _, entry in rows) else None
    reader = RawImageReader(raw / DATA_LINK, sizes, [entry for _, entry in rows], in_rows)
    part = []
    with ShardWriter(out / name) as writer:
        for key, entry in track(rows, f"{name}: images checked", len(rows)):
            part.append(_add(writer, reader, key, entry, index, hashes.get(entry.path)))
    reader.close()
    table = pa.Table.from_pylist(part, PART_SCHEMA)
    table = table.replace_schema_metadata({SHARD_SHA256: writer.sha256, SHARD_BYTES: str(writer.bytes)})
    write_table(part_path(out, name), table)
    return table


def _images_in_rows(raw: Path) -> ImagesInRows:
    """What reads the images inside of the rows of a source of own data."""
    manifest = read_json(raw / SOURCE_MANIFEST)
    return own_images().EmbeddedImages(raw / DATA_LINK, manifest["dataset"], manifest["annotations"]).in_rows


def _add(
    writer: ShardWriter, reader: RawImageReader, key: str, entry: ImageEntry, shard: int, listed: str | None
) -> dict[str, Any]:
    """Check one image and append it if it is readable; return its row of the part.

    `listed` is its sha256 in the table of files, if it is a separate file.
    """
    row: dict[str, Any] = {"key": key, "path": entry.path, "shard": shard, "length": entry.length, "sha256": ""}
    try:
        data = reader.read(entry)
        row |= {"length": len(data), "sha256": bytes_sha256(data)}
        if listed not in (None, row["sha256"]):
            raise changed(reader.root / entry.path)
        info = check_image(data, entry.path)
    except UnreadableImageError as error:
        return row | {"reason": error.reason, "detail": error.detail}
    offset = writer.add(key, [(info.format, data)])[0]
    return row | vars(info) | {"offset": offset}


def main() -> None:
    """Run the program."""
    hide_pandas()
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, help="name of the source of the images")
    arguments.add_argument("--raw", type=Path, required=True, help="raw/<source>, as written by scripts.fetch")
    arguments.add_argument("--shards", type=int, required=True, help="number of shards of the source")
    arguments.add_argument("--index", type=int, required=True, help="number of the shard to build, from 0")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write into: media/<source>")
    args = arguments.parse_args()
    if not 0 <= args.index < args.shards:
        raise UserError(f"--index {args.index} is not one of {args.shards} shards, which are counted from 0")
    table = write_shard(args.source, args.raw, args.shards, args.index, args.out)
    images = table["reason"].null_count
    print(f"{shard_name(args.source, args.index, args.shards)}: {images} images, {table.num_rows - images} rejected")


if __name__ == "__main__":
    run_program(main)
