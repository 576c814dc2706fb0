"""Checking that training can read an image, by decoding it completely.

The header is not enough: that of a truncated JPEG is intact. An image that passes decodes to RGB in training.
"""

import os
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from scripts.media.opening import LONG_TEXT, MAX_PIXELS, open_image

_FORMATS = {
    "JPEG": ("jpg", {".jpg", ".jpeg"}),
    # Phones write JPEG files with further images appended.
    "MPO": ("jpg", {".jpg", ".jpeg"}),
    "PNG": ("png", {".png"}),
    "WEBP": ("webp", {".webp"}),
    "GIF": ("gif", {".gif"}),
    "BMP": ("bmp", {".bmp"}),
    "TIFF": ("tif", {".tif", ".tiff"}),
}
"""Pillow's name of a format -> the extension used in shards, and the usual extensions of such files."""

_ORIENTATION = 0x0112
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
    "I": "16-bit",
    "F": "16-bit",
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
        flags: what is unusual but harmless: "cmyk", "palette", "alpha", "grey", "16-bit" or "other-colours" (not RGB),
            "extension" (the file name has that of another format), "frames" (more than one), "rotated" (by EXIF),
            "long-text" (a PNG with more text than Pillow accepts by default).
    """

    width: int
    height: int
    format: str
    mode: str
    orientation: int
    flags: tuple[str, ...]


class UnreadableImageError(Exception):
    """The bytes are not a usable image; `reason` is the name under which the report counts it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def check_image(data: bytes, path: str) -> ImageInfo:
    """Decode `data`, the bytes of the file `path`.

    Raises:
        UnreadableImageError: zero_bytes, not_an_image, unsupported_format, one_pixel, too_large, truncated or corrupt.
    """
    if not data:
        raise UnreadableImageError("zero_bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(data)
        except UnidentifiedImageError:
            raise UnreadableImageError("not_an_image", _beginning(data)) from None
        except Image.DecompressionBombError as error:
            raise UnreadableImageError("too_large", str(error)) from None
        except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything on damaged data
            raise _broken(error) from None
        with image:
            return _decode(image, path)


def _decode(image: Image.Image, path: str) -> ImageInfo:
    width, height = image.size
    if image.format not in _FORMATS:
        raise UnreadableImageError("unsupported_format", str(image.format))
    if width <= 1 or height <= 1:
        raise UnreadableImageError("one_pixel", f"{width} x {height}")
    if width * height > MAX_PIXELS:
        raise UnreadableImageError("too_large", f"{width} x {height}")
    extension, usual_suffixes = _FORMATS[image.format]
    mode, frames = image.mode, getattr(image, "n_frames", 1)
    try:
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        if mode != "RGB":
            image.convert("RGB")
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on damaged data
        raise _broken(error) from None
    upright = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    suffix = os.path.splitext(path)[1].lower()
    flags = [
        *([] if mode == "RGB" else [_MODES.get(mode, "16-bit" if mode.startswith("I;16") else "other-colours")]),
        *(["extension"] if suffix and suffix not in usual_suffixes else []),
        *(["frames"] if frames > 1 else []),
        *(["rotated"] if upright != 1 else []),
        *(["long-text"] if any(len(text) > LONG_TEXT for text in getattr(image, "text", {}).values()) else []),
    ]
    return ImageInfo(width, height, extension, mode, upright, tuple(flags))


def _beginning(data: bytes) -> str:
    return f"{len(data)} bytes that begin with {data[:16]!r}"


def _broken(error: Exception) -> UnreadableImageError:
    message = f"{type(error).__name__}: {error}"[:200]
    return UnreadableImageError("truncated" if "truncated" in message.lower() else "corrupt", message)
