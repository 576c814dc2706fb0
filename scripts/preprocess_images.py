"""Make the image processor's crop of every image of a media shard, so that training need not decode and resize it.

Reads   media/<source>, an image processor
Writes  pixels/<encoder>/<source>-00003-of-00016.u8, .sha256, .json      see scripts/media/pixel_store.py

The crops are exactly what training would make of the images: uint8, not yet normalised. Shards are independent of each
other and may be made in parallel.
"""

from pathlib import Path

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


def write_pixels(processor: str, source: str, media: Path, shard: str, out: Path) -> dict:
    """Write the crops of the images in `shard` (its name without ending) of `media`; return what was written.

    Raises:
        UserError: the processor or the media are missing, or images are damaged.
    """
    try:
        images = load_image_processor(processor)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no image processor could be loaded from {processor!r}: {str(error).splitlines()[0]}"
        ) from None
    names = [entry["name"] for entry in read_json(media / MANIFEST)["shards"]]
    if f"{shard}.tar" not in names:
        raise UserError(f"{media / MANIFEST} names no shard {shard}: run shard and index for {source} first")
    index = read_table(media / INDEX, columns=["key", "shard", "sha256"])
    rows = index.filter(pc.equal(index["shard"], names.index(f"{shard}.tar"))).to_pylist()
    place, store, shape = out / shard, MediaStore({source: media}), [0, 0, 0]
    with atomic(place.with_suffix(PIXELS)) as file:
        for row in track(rows, f"{shard}: images made", len(rows)):
            with open_image(store.read(source, row["key"])) as picture:
                batch = images(to_rgb(picture), do_rescale=False, do_normalize=False)
            crop = np.asarray(batch["pixel_values"][0], dtype=np.uint8)
            if file.tell() and list(crop.shape) != shape:
                raise UserError(f"the processor {processor!r} makes images of different sizes; they cannot be stored")
            shape = list(crop.shape)
            file.write(crop.tobytes())
    store.close()
    with atomic(place.with_suffix(HASHES)) as file:
        file.write(b"".join(bytes.fromhex(row["sha256"]) for row in rows))
    facts = {
        "v": 1,
        "source": source,
        "key": pixels_key(images.to_dict()),
        "pillow": PIL.__version__,
        "images": len(rows),
        "shape": shape,
    }
    write_json(place.with_suffix(".json"), facts)
    return facts


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--processor", required=True, help="folder or hub name of the vision encoder")
    arguments.add_argument("--source", required=True, help="whose images")
    arguments.add_argument("--media", required=True, type=Path, help="media/<source>")
    arguments.add_argument("--shard", required=True, help="name of the media shard, without .tar")
    arguments.add_argument("--out", required=True, type=Path, help="folder to write into: pixels/<encoder>")
    args = arguments.parse_args()
    write_pixels(args.processor, args.source, args.media, args.shard, args.out)


if __name__ == "__main__":
    run_program(main)
