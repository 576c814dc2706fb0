"""Decode and resize every image of a media shard once, so that training does not have to do it in every epoch.

Reads   media/<source>, an image processor
Writes  pixels/<encoder>/<source>-00003-of-00016.u8, .sha256, .sums, .json    see scripts/media/pixel_store.py

The crops are those that training would compute: uint8, not yet normalised. Shards are independent of each other and can
be made in parallel.
"""

from pathlib import Path
from typing import Any

import PIL

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.progress import track
from scripts.inference.shard_crops import crops, image_processor_of, shard_images
from scripts.media.pixel_store import PixelStore, pixels_key


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
    image_processor = image_processor_of(processor)
    images = shard_images(source, media, shard)
    facts = {"source": source, "key": pixels_key(image_processor.to_dict()), "pillow": PIL.__version__}
    arrays = track(crops(image_processor, source, media, images), f"{shard}: images preprocessed", len(images))
    return PixelStore.write(out / shard, arrays, [image.sha256 for image in images], facts)


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
