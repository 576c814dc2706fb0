"""The feature store: the output of a frozen vision encoder for every image, looked up by the hash of the image.

A frozen encoder gives the same features in every epoch, so encoding an image once is enough. They are kept in bf16:
CLIP ViT-L/14 at 224 pixels makes 256 tokens of width 1024 of an image, half a megabyte. The files are described in
`array_store.py`; those with the features, (images, tokens, width) bf16, end in `.bf16`. NumPy has no such type: here
the numbers are uint16 with the bits of bf16.

`key` is a hash of all that determines the features, see `EncoderOutput`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.common.files import canonical_json, text_sha256
from scripts.media.array_store import ArrayStore

_VERSION = 1
_WORDS = {
    "weights": "other weights of the vision encoder",
    "layer": "another vision_layer",
    "class_token": "another class_token",
    "image_size": "another size of images",
    "precision": "another precision",
    "pixels": "another image processor or Pillow",
}


@dataclass(frozen=True)
class EncoderOutput:
    """What determines the features of an image.

    `weights`: sha256 of the encoder's folder. `layer`, `class_token`: which hidden layer, and whether it is kept.
    `image_size`: side of the encoder's images in pixels. `precision`: what the encoder computes in, before its output
    is rounded to bf16. `pixels`: the crop, see `pixel_store.pixels_key`.
    """

    weights: str
    layer: int
    class_token: str
    image_size: int
    precision: str
    pixels: str

    @property
    def key(self) -> str:
        """A hash, 16 hex digits."""
        return text_sha256(canonical_json({"v": _VERSION, **asdict(self)}))[:16]


class FeatureStore(ArrayStore):
    """The features of images, uint16 (tokens, width) with the bits of bf16."""

    NAME, ENDING, DTYPE, AXES = "feature store", ".bf16", np.uint16, 2
    PROGRAM, SETTING = "encode_images", "features"

    def __init__(self, manifests: Iterable[str | Path], expected: EncoderOutput) -> None:
        """Open the shards that the JSON files `manifests` describe, all made as `expected`.

        Raises:
            UserError: a shard is missing or incomplete, or was made with another encoder, layer, precision or crop.
        """
        self._expected = expected
        super().__init__(manifests, expected.key)

    def _difference(self, facts: Mapping[str, Any]) -> str:
        expected = asdict(self._expected)
        others = [words for name, words in _WORDS.items() if facts["encoder"].get(name) != expected[name]]
        return f"{' and '.join(others) or 'another version of the program'} than this run's"
