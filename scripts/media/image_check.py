"""Checking that training can read an image, by decoding it completely.

The header is not enough: that of a truncated JPEG is intact. An image that passes is decoded and converted to RGB in
training, evaluation, chat and server by the same functions as here.
"""

import os
import warnings
from dataclasses import dataclass

from PIL import Image

from model.pixels import convert, orientation
from scripts.media.formats import FORMATS
from scripts.media.opening import LONG_TEXT, UnreadableImageError, decode_image, unreadable

_MODES = {
    "CMYK": "cmyk",
    "P": "palette",
    "PA": "palette",
    "LA": "alpha",
    "RGBA": "alpha",
    "La": "alpha",
    "RGBa": "alpha",
    "L": "grey",
    "1": "grey",
    "I": "grey",
    "F": "grey",
}
"""Pillow's mode -> the flag of an image that is not RGB."""


@dataclass(frozen=True)
class ImageInfo:
    """Properties of a readable image.

    Attributes:
        width, height: in pixels, before the EXIF orientation is applied.
        format: its extension in shards.
        mode: Pillow's mode.
        orientation: that of EXIF; 1 without one.
        flags: what is unusual but harmless.
            Its mode: "cmyk", "palette", "alpha", "grey" or "other-colours" (not RGB).
            What was done to its values (see model/pixels.py): "on-white" (transparent pixels are composited on white),
            "12-bit" (or another number), "16-bit", "32-bit" or "float" (scaled to 8 bits).
            Others: "extension" (the file name has that of another format), "frames" (of several, the first is used),
            "rotated" (by EXIF), "long-text" (a PNG with more text than Pillow accepts by default).
    """

    width: int
    height: int
    format: str
    mode: str
    orientation: int
    flags: tuple[str, ...]


def check_image(data: bytes, path: str) -> ImageInfo:
    """Decode `data`, the bytes of the file `path`, and convert them to RGB.

    Raises:
        UnreadableImageError: zero_bytes, not_an_image, unsupported_format, one_pixel, too_large, truncated or corrupt.
    """
    image = decode_image(data)
    width, height, mode = image.width, image.height, image.mode
    if width <= 1 or height <= 1:
        raise UnreadableImageError("one_pixel", f"{width} x {height}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            changes = convert(image).changes
            upright, frames = orientation(image), _has_frames(image)
        except Exception as error:  # noqa: BLE001 - Pillow raises anything on damaged data
            raise unreadable(error) from None
    usual_suffixes = FORMATS[str(image.format)]
    suffix = os.path.splitext(path)[1].lower()
    flags = [
        *_of_mode(mode, changes),
        *changes,
        *(["extension"] if suffix and suffix not in usual_suffixes else []),
        *(["frames"] if frames else []),
        *(["rotated"] if upright != 1 else []),
        *(["long-text"] if any(len(text) > LONG_TEXT for text in getattr(image, "text", {}).values()) else []),
    ]
    return ImageInfo(width, height, usual_suffixes[0].removeprefix("."), mode, upright, tuple(flags))


def _of_mode(mode: str, changes: tuple[str, ...]) -> list[str]:
    """The flag of a mode; of grey images with more than 8 bits, what was done is enough."""
    if mode == "RGB" or (changes and (mode in ("I", "F") or mode.startswith("I;16"))):
        return []
    return [_MODES.get(mode, "other-colours")]


def _has_frames(image: Image.Image) -> bool:
    """Whether an image has more than one frame; counting them would read all of a file with any number of them."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True
