"""Select the images that are held out for evaluation, by a hash of their content only.

Reads the index of every media folder. Writes, below --out, `heldout.parquet` (source, key, sha256) and, last,
`manifest.json`. Whether an image is held out does not depend on other images, names or blends, and two copies of an
image are treated alike.
"""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_table, write_json, write_table
from scripts.common.table_hash import table_sha256
from scripts.config.holdout import HoldoutConfig
from scripts.media.source_folders import add_folders, named_folders
from scripts.media.store import INDEX, MANIFEST

HELDOUT = "heldout.parquet"
_ROWS_AT_ONCE = 1 << 14
SCHEMA = pa.schema([("source", pa.string()), ("key", pa.string()), ("sha256", pa.string())])


def is_held_out(sha256: str, settings: HoldoutConfig) -> bool:
    """Whether the image with this sha256 (hex) is held out for evaluation."""
    digest = hashlib.blake2b(sha256.encode(), key=str(settings.seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < settings.share * 2**64


def write_split(settings: HoldoutConfig, media: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write the table of held-out images of all `media` folders, given by source; return the manifest.

    Raises:
        UserError: an index is missing.
    """
    rows: list[dict[str, str]] = []
    images = 0
    for source, folder in sorted(media.items()):
        try:
            index = read_table(folder / INDEX, columns=["key", "sha256"])
        except FileNotFoundError:
            raise UserError(f"{folder / INDEX} does not exist: run scripts.media_index for {source!r} first") from None
        images += index.num_rows
        for batch in index.to_batches(_ROWS_AT_ONCE):
            rows += [{"source": source, **row} for row in batch.to_pylist() if is_held_out(row["sha256"], settings)]
    table = pa.Table.from_pylist(rows, SCHEMA).sort_by([("source", "ascending"), ("key", "ascending")])
    write_table(out / HELDOUT, table)
    manifest = {
        "v": 1,
        "share": settings.share,
        "seed": settings.seed,
        "images": images,
        "heldout": len(rows),
        "sha256": table_sha256(table),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--settings", default="{}", help="JSON of the section `holdout`, or @file")
    add_folders(arguments, "--media", "media/<source> of every image source; none if all data is text")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write: split")
    args = arguments.parse_args()
    media = named_folders(args.media, "--media")
    manifest = write_split(load_settings(HoldoutConfig, args.settings), media, args.out)
    print(f"{manifest['heldout']} of {manifest['images']} images are held out")
    if not manifest["heldout"]:
        print("note: no image is held out; the held-out plan of a blend counts the conversations that are evaluated")


if __name__ == "__main__":
    run_program(main)
