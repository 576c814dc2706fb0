"""A cache of images as the model takes them, so that one that is shown again is decoded and cropped once."""

import numpy as np

from model.processing import VisualChatProcessor
from scripts.media.opening import open_image

_CACHE_BYTES = 256 << 20


class DecodedImageCache:
    """Decoded and resized images by the hash of their bytes; each image repeats in every epoch.

    Once full it takes no more: epochs visit images in turn, and evicting the oldest would then evict exactly what
    comes next.
    """

    def __init__(self, processor: VisualChatProcessor, limit: int = _CACHE_BYTES):
        self._processor, self._room = processor, limit
        self._images: dict[str, np.ndarray] = {}

    def get(self, sha256: str, data: bytes) -> np.ndarray:
        """Return the image as the model takes it, uint8 (3, H, W)."""
        if sha256 in self._images:
            return self._images[sha256]
        with open_image(data) as picture:
            image = self._processor.preprocess_image(picture)
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._images[sha256] = image
        return image
