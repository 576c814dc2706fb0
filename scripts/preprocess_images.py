"""Decode and resize every image of a media shard once, so that training does not have to do it in every epoch.

Reads   media/<source>, an image processor
Writes  pixels/<encoder>/<source>-00003-of-00016.u8, .sha256, .json      see scripts/media/pixel_store.py

The crops are those that training would compute: uint8, not yet normalised. Shards are independent of each other and can
be made in parallel.
"""

from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow.compute as pc

from model.processing import load_image_processor, to_rgb
from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import atomic, read_json, read_table, write_json
from scripts.common.progress import track
from scripts.media.opening import open_image
from scripts.media.pixel_store import HASHES, PIXELS, pixels_key
from scripts.media.store import INDEX, MANIFEST, MediaStore


def write_pixels(processor: str, source: str, media: Path, shard: str, out: Path) -> dict[str, Any]:
    """Write the crops of the images of one shard; return the contents of their JSON file.

    Args:
        processor: folder or hub name of the vision encoder.
        source: name of the source of the images.
        media: its folder `media/<source>`.
        shard: name of the media shard, without extension.
        out: folder to write into.

    Raises:
        UserError: the processor or the media are missing, or the crops have different sizes.
    """
    try:
        image_processor = load_image_processor(processor)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no image processor could be loaded from {processor!r}: {str(error).splitlines()[0]}"
        ) from None
    names = [entry["name"] for entry in read_json(media / MANIFEST)["shards"]]
    if f"{shard}.tar" not in names:
        raise UserError(f"{media / MANIFEST} lists no shard {shard}: run shard and media_index for {source} first")
    index = read_table(media / INDEX, columns=["key", "shard", "sha256"])
    rows = index.filter(pc.equal(index["shard"], names.index(f"{shard}.tar"))).to_pylist()
    stem, store, shape = out / shard, MediaStore({source: media}), [0, 0, 0]
    with atomic(stem.with_suffix(PIXELS)) as file:
        for row in track(rows, f"{shard}: images preprocessed", len(rows)):
            with open_image(store.read(source, row["key"])) as image:
                batch = image_processor(to_rgb(image), do_rescale=False, do_normalize=False)
            crop = np.asarray(batch["pixel_values"][0], dtype=np.uint8)
            if file.tell() and list(crop.shape) != shape:
                raise UserError(f"the processor {processor!r} makes crops of different sizes, which cannot be stored")
            shape = list(crop.shape)
            file.write(crop.tobytes())
    store.close()
    with atomic(stem.with_suffix(HASHES)) as file:
        file.write(b"".join(bytes.fromhex(row["sha256"]) for row in rows))
    manifest = {
        "v": 1,
        "source": source,
        "key": pixels_key(image_processor.to_dict()),
        "pillow": PIL.__version__,
        "images": len(rows),
        "shape": shape,
    }
    write_json(stem.with_suffix(".json"), manifest)
    return manifest


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--processor", required=True, help="folder or hub name of the vision encoder")
    arguments.add_argument("--source", required=True, help="name of the source of the images")
    arguments.add_argument("--media", required=True, type=Path, help="media/<source>")
    arguments.add_argument("--shard", required=True, help="name of the media shard, without .tar")
    arguments.add_argument("--out", required=True, type=Path, help="folder to write into: pixels/<encoder>")
    args = arguments.parse_args()
    write_pixels(args.processor, args.source, args.media, args.shard, args.out)


if __name__ == "__main__":
    run_program(main)
