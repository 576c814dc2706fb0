"""Opening an encoded image, with limits on the memory that it may take.

By default Pillow refuses PNG files with long text chunks (editing software writes its history there) although their
pixels are intact, and only warns about images so large that decoding them would fill the memory. Here long texts are
accepted and such images are refused.
"""

import io

from PIL import Image, PngImagePlugin

MAX_PIXELS = 1 << 26
"""Larger images are refused: decoded, one would take 200 MB and more."""
LONG_TEXT = PngImagePlugin.MAX_TEXT_CHUNK
"""Characters in a text chunk of a PNG that Pillow accepts by default."""

# Text stays limited: chunks are compressed, so a small file could need any amount of memory.
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20
PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20
# Pillow raises at twice its own limit, before it decodes anything.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def open_image(data: bytes) -> Image.Image:
    """Open `data` without decoding its pixels; Pillow raises errors of many types for bytes that are not an image."""
    return Image.open(io.BytesIO(data))
