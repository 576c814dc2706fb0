"""A cache of images in the form of the model's input, so that a repeated image is decoded and cropped only once."""

import numpy as np

from model.processing import VisualChatProcessor
from scripts.media.opening import UnreadableImageError, decode_image

_CACHE_BYTES = 256 << 20


class DecodedImageCache:
    """Decoded and resized images by the hash of their bytes; each image repeats in every epoch.

    Once full it keeps what it has: epochs visit images in turn, so evicting the oldest would evict exactly those that
    come next.
    """

    def __init__(self, processor: VisualChatProcessor, max_bytes: int = _CACHE_BYTES) -> None:
        self._processor, self._free_bytes = processor, max_bytes
        self._images: dict[str, np.ndarray] = {}

    def get(self, sha256: str, data: bytes) -> np.ndarray:
        """Return the image of these bytes as the model's input, uint8 (3, H, W).

        Raises:
            UnreadableImageError: it cannot be decoded, or is too large for the processor.
        """
        if sha256 in self._images:
            return self._images[sha256]
        try:
            image = self._processor.preprocess_image(decode_image(data))
        except ValueError as error:
            raise UnreadableImageError("too_large", str(error)) from None
        if image.nbytes <= self._free_bytes:
            self._free_bytes -= image.nbytes
            self._images[sha256] = image
        return image
