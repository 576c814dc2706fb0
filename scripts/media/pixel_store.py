"""The pixel store: the output of the image processor for every image, looked up by the hash of the image.

A frozen encoder gets the same pixels in every epoch, so decoding and resizing an image once is enough. A crop of 224
pixels is 150 kB, about as much as the JPEG it was made from, and is read by mapping the file: no decoder, no copy. The
files are described in `array_store.py`; those with the crops, (images, 3, height, width) uint8, end in `.u8`.

`key` is a hash of the image processor's settings and of Pillow's version, whose resampling is part of the pixels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL

from scripts.common.files import canonical_json, text_sha256
from scripts.media.array_store import ArrayStore

_VERSION = 2
# Names of classes and files: they differ between a processor and its saved copy and have no influence on pixels.
_NOT_PIXELS = ("processor_class", "image_processor_type", "_processor_class", "auto_map", "name_or_path")


def pixels_key(settings: Mapping[str, Any]) -> str:
    """A hash, 16 hex digits, of what determines the crops: the processor's settings (`to_dict()`), Pillow's version."""
    known = {name: value for name, value in settings.items() if value is not None and name not in _NOT_PIXELS}
    facts = {"v": _VERSION, "pillow": PIL.__version__, "processor": known}
    return text_sha256(canonical_json(facts))[:16]


class PixelStore(ArrayStore):
    """The crops of images, uint8 (3, height, width). `key`: see `pixels_key`."""

    NAME, ENDING, DTYPE, AXES = "pixel store", ".u8", np.uint8, 3
    PROGRAM, SETTING = "preprocess_images", "pixels"

    def _difference(self, facts: Mapping[str, Any]) -> str:
        made = f"Pillow {facts['pillow']}, this is {PIL.__version__}" if facts["pillow"] != PIL.__version__ else ""
        return f"another image processor or Pillow than this model's ({made or 'other settings'})"
