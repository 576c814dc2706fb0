"""Opening an encoded image: the one place that decides how much an image may ask for.

Pillow refuses PNG files with long text chunks (editing software writes whole histories there) although their pixels are
fine, and merely warns of images so large that decoding them would fill the memory. Here it is the other way round.
"""

import io

from PIL import Image, PngImagePlugin

MAX_PIXELS = 1 << 26
"""Larger images are refused: a decoded one would take 200 MB and more."""
LONG_TEXT = PngImagePlugin.MAX_TEXT_CHUNK
"""Text chunks of a PNG beyond this length are what Pillow, left alone, refuses."""

# Text is bounded still: a chunk is compressed, and a small file could ask for any amount of memory.
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20
PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20
# Pillow raises at twice its own limit, before it decodes anything.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def open_image(data: bytes) -> Image.Image:
    """Open `data` without decoding its pixels; raises whatever Pillow raises for bytes that are no image."""
    return Image.open(io.BytesIO(data))
