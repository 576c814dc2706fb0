"""Any image as upright RGB with 8 bits: the one conversion before an image is checked, cached, trained on or answered.

    EXIF orientation   applied; an orientation that cannot be read counts as upright
    transparency       composited on white: an alpha channel, a transparent colour of a palette, of grey or of RGB
    16-bit grey        the high byte: 0..65535 become 0..255. A TIFF that declares fewer bits (12) is scaled by these
    32-bit grey        values within 0..255 are kept, within 0..65535 treated as 16 bits, others scaled from their
                       smallest to their largest value
    float grey         values within 0..1 are multiplied by 255, within 0..255 rounded, others scaled from their
                       smallest to their largest value; NaN becomes 0
    all other modes    as Pillow converts them

Torch is not imported: the data steps use this module on machines without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

MAX_PIXELS = 1 << 26
"""Most pixels of an image: decoded, one takes 256 MB and twice as much while it is converted."""
MAX_SIDE = 65_535
"""Longest width or height, that of the largest JPEG."""
ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The value of the EXIF orientation -> what puts the image upright."""
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281
_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


class Converted(NamedTuple):
    """An image as RGB, and what was done to its values: some of "on-white", "12-bit", "16-bit", "32-bit", "float"."""

    image: Image.Image
    changes: tuple[str, ...]


def open_bounded(file: str | Path | IO[bytes]) -> Image.Image:
    """Open an image without decoding it.

    Raises OSError if it is no image, ValueError if it is larger than `MAX_PIXELS` or `MAX_SIDE`.
    """
    image = Image.open(file)
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        image.close()
        raise ValueError(f"an image of {width} x {height} pixels is too large")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as upright RGB; the rules are at the top of this module."""
    return convert(image).image


def convert(image: Image.Image) -> Converted:
    """As `to_rgb`, with the changes that were made."""
    turn = _TURNS.get(orientation(image))
    converted = _as_rgb(image)
    if turn is None:
        return converted
    upright = converted.image.transpose(turn)
    # Without its EXIF data, or it would be turned again by whoever converts it next.
    upright.info.clear()
    return converted._replace(image=upright)


def orientation(image: Image.Image) -> int:
    """The orientation in the EXIF data of an image, 1 to 8; 1 (upright) without one, or if the data are damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - Pillow raises errors of many types on damaged EXIF data
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _as_rgb(image: Image.Image) -> Converted:
    transparent = image.info.get("transparency")
    if image.mode == "RGB" and transparent is None:
        return Converted(image, ())
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image)
    if image.mode not in _ALPHA and transparent is None and not _palette_with_alpha(image):
        return Converted(image.convert("RGB"), ())
    colours = _with_alpha(image)
    if colours.getchannel("A").getextrema()[0] == 255:
        return Converted(colours.convert("RGB"), ())
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=colours)
    return Converted(white, ("on-white",))


def _palette_with_alpha(image: Image.Image) -> bool:
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _with_alpha(image: Image.Image) -> Image.Image:
    """An image with transparency as RGBA."""
    transparent = image.info.get("transparency")
    if image.mode == "1":
        # Pillow compares the transparent value, 0 or 1, with pixels of 0 or 255.
        image = image.convert("L")
        if isinstance(transparent, int):
            image.info["transparency"] = 255 if transparent else 0
    elif image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        # Of 16-bit colours Pillow keeps the high byte, but their transparent colour has both.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode[:-1].upper() + "A")
    return image.convert("RGBA")


def _scaled(image: Image.Image) -> Converted:
    """A grey image of more than 8 bits as RGB."""
    values = np.asarray(image)
    changes: tuple[str, ...]
    if image.mode.startswith("I;16"):
        levels, change = _declared_levels(image)
        grey, changes = (values.astype(np.int64) * 256 // levels).clip(0, 255), (change,)
    else:
        low, high = _range(values)
        changes = ()
        if low >= 0 and high <= 255 and not (image.mode == "F" and high <= 1):
            grey = np.rint(np.nan_to_num(values)).clip(0, 255)
        elif image.mode == "I" and low >= 0 and high <= 65535:
            grey, changes = values >> 8, ("16-bit",)
        else:
            if image.mode == "F" and low >= 0 and high <= 1:
                low, high = 0.0, 1.0
            finite = np.nan_to_num(values.astype(np.float64), posinf=high, neginf=low)
            grey = np.rint((finite - low) * 255 / (high - low or 1)).clip(0, 255)
            changes = ("float" if image.mode == "F" else "32-bit",)
    rgb = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    transparent = image.info.get("transparency")
    hidden = values == transparent if isinstance(transparent, int) else np.zeros((), bool)
    if not hidden.any():
        return Converted(rgb, changes)
    rgb.paste("white", mask=Image.fromarray(hidden.astype(np.uint8) * 255))
    return Converted(rgb, (*changes, "on-white"))


def _declared_levels(image: Image.Image) -> tuple[int, str]:
    """How many levels a 16-bit image declares, and the name of the change: of a TIFF, by its bits or largest value."""
    tags = getattr(image, "tag_v2", {})
    bits, largest = (_first(tags.get(tag)) for tag in (_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE))
    if 8 < bits < 16:
        return 1 << bits, f"{bits}-bit"
    if 255 < largest < 65535:
        # The next power of two, so that 12 bits are scaled alike whichever way they are declared.
        bits = int(largest).bit_length()
        return 1 << bits, f"{bits}-bit"
    return 1 << 16, "16-bit"


def _first(value: object) -> int:
    """A number of a TIFF tag, which may be a tuple of numbers; 0 for anything else."""
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else 0


def _range(values: np.ndarray) -> tuple[float, float]:
    """The smallest and largest of the finite values; 0 and 0 without any."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
