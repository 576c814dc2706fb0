"""Encode every image of a media shard once with a frozen vision encoder, so that training does not have to do it.

    reads   media/<source>, a vision encoder; with --pixels its preprocessed images, which are then not decoded again
    writes  features/<encoder>/<output>/<source>-00003-of-00016.bf16, .sha256, .sums, .json
            (see scripts/media/feature_store.py)

The features are what the model's vision tower returns: those of the selected layer, with or without the class token,
rounded to bf16. They are computed on a GPU where there is one. Shards are independent of each other and can be made in
parallel.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.progress import track
from scripts.common.verified_folder import check_folder
from scripts.media.feature_store import EncoderOutput, FeatureStore
from scripts.media.pixel_store import PixelStore, pixels_key

if TYPE_CHECKING:
    from model.vision import VisionTower

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Encoder(NamedTuple):
    """A vision encoder on its device, its image processor, and what determines its output."""

    tower: "VisionTower"
    image_processor: Any
    output: EncoderOutput


def load_encoder(name: str, root: Path, layer: int, class_token: str, precision: str) -> Encoder:
    """Load a vision encoder: a folder as given or below `root`, or a model of the hub. See `EncoderOutput`.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    import torch
    from safetensors import SafetensorError

    from model.encoder_loading import load_vision_tower
    from model.processing import image_side
    from scripts.inference.base_folders import find_base, folder_sha256

    folder = find_base(name, root)
    check_folder(folder)
    options = {"vision_feature_layer": layer, "vision_class_token": class_token}
    try:
        tower, image_processor = load_vision_tower(folder, getattr(torch, _DTYPES[precision]), **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{name} cannot be used as a vision encoder: {str(error).splitlines()[0]}") from None
    output = EncoderOutput(
        weights=folder_sha256(folder),
        layer=layer,
        class_token=class_token,
        image_size=image_side(image_processor),
        precision=precision,
        pixels=pixels_key(image_processor.to_dict()),
    )
    return Encoder(tower.to("cuda" if torch.cuda.is_available() else "cpu"), image_processor, output)


def write_features(
    encoder: Encoder,
    source: str,
    media: Path,
    shard: str,
    out: Path,
    pixels: Path | None = None,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Write the features of the images of one shard; return the contents of their JSON file.

    Args:
        encoder: what `load_encoder` returns.
        source: name of the source of the images.
        media: its folder `media/<source>`.
        shard: name of the media shard, without extension.
        out: folder to write into.
        pixels: manifest of the preprocessed images of this shard; without it they are decoded here.
        batch_size: images that are encoded at once.

    Raises:
        UserError: the media or the preprocessed images are missing, or were made with another image processor.
    """
    from scripts.inference.shard_crops import crops, shard_images

    images = shard_images(source, media, shard)
    if pixels:
        store = PixelStore([pixels], encoder.output.pixels)
        shown: Iterable[np.ndarray] = (store.get(image.sha256) for image in images)
    else:
        shown = crops(encoder.image_processor, source, media, images)
    arrays = track(_encoded(encoder.tower, shown, batch_size), f"{shard}: images encoded", len(images))
    facts = {"source": source, "key": encoder.output.key, "encoder": asdict(encoder.output)}
    return FeatureStore.write(out / shard, arrays, [image.sha256 for image in images], facts)


def _encoded(tower: "VisionTower", pixels: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """The features (tokens, width) of images (3, height, width): uint16 with the bits of bf16."""
    import torch

    device, remaining = next(tower.parameters()).device, iter(pixels)
    while batch := list(islice(remaining, batch_size)):
        with torch.no_grad():
            features = tower(torch.from_numpy(np.stack(batch)).to(device))
        yield from features.to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--encoder", required=True, help="folder or hub name of the vision encoder")
    layer = "hidden layer whose features are kept; -1: the output (default)"
    arguments.add_argument("--layer", type=int, default=-1, help=layer)
    token = "whether the class token is one of the image's tokens (default: drop)"  # noqa: S105 - not a password
    arguments.add_argument("--class-token", choices=("drop", "keep"), default="drop", help=token)
    precision = "number format that the encoder computes in: that of the run (default: fp32)"
    arguments.add_argument("--precision", choices=_DTYPES, default="fp32", help=precision)
    arguments.add_argument("--source", required=True, help="name of the source of the images")
    arguments.add_argument("--media", required=True, type=Path, help="media/<source>")
    arguments.add_argument("--shard", required=True, help="name of the media shard, without .tar")
    pixels = "manifest pixels/<encoder>/<shard>.json: read these preprocessed images instead of decoding them"
    arguments.add_argument("--pixels", type=Path, help=pixels)
    arguments.add_argument("--batch-size", type=int, default=64, help="images that are encoded at once (default: 64)")
    threads = "CPU threads (default: 1); without a GPU another number gives other last digits"
    arguments.add_argument("--threads", type=int, default=1, help=threads)
    root = "results root, which the encoder's folder may be relative to"
    arguments.add_argument("--root", type=Path, default=Path(), help=root)
    out = "folder to write into: features/<encoder>/layer<layer>-<class token>-<precision>"
    arguments.add_argument("--out", required=True, type=Path, help=out)
    args = arguments.parse_args()
    if args.batch_size < 1:
        arguments.error("--batch-size: must be at least 1")
    # Imported late, so that --help and errors in arguments appear at once.
    import torch

    torch.set_num_threads(args.threads)
    encoder = load_encoder(args.encoder, args.root, args.layer, args.class_token, args.precision)
    write_features(encoder, args.source, args.media, args.shard, args.out, args.pixels, args.batch_size)


if __name__ == "__main__":
    run_program(main)
