"""Opening and decoding an encoded image: the one place that bounds what an image may cost.

Every program that reads images (shard, training, caches, evaluation, chat, server, report) does so with `open_image`
and `decode_image`. Before a pixel is decoded they refuse what would take too much memory or time:

    bytes      MAX_BYTES, encoded
    pixels     MAX_PIXELS, and MAX_SIDE in width and in height; a tile of a TIFF likewise
    frames     only the first one is decoded; the others are neither decoded nor counted
    seconds    decoders in Python: MAX_SLOWLY pixels;
               JPEG: pixels times scans, MAX_SCANNED (a progressive file may describe every pixel any number of times);
               PNG, GIF, TIFF: MAX_PIECES chunks, blocks or strips, each of which costs some microseconds; PNG: MAX_TEXT

What the model's image processor makes of an image is bounded in `model/cropping.py`. Files are read with `read_image`,
which does not wait for a pipe.
"""

import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from model.pixels import MAX_PIXELS, MAX_SIDE
from scripts.media.formats import FORMATS, OPENED, largest_icon, missing_plug_in, recognised

MAX_BYTES = 4 * MAX_PIXELS
"""Most bytes of an encoded image: no more than its decoded pixels could take."""
MAX_SCANNED = 16 * MAX_PIXELS
"""Most pixels times scans of a JPEG: a progressive file has about 10 scans, each of 0.1 s for 2^26 pixels."""
MAX_PIECES = 1 << 18
"""Most chunks of a PNG, blocks of a GIF before its first frame, and strips or tiles of a TIFF: 3 seconds."""
LONG_TEXT = PngImagePlugin.MAX_TEXT_CHUNK
"""Characters in a text chunk of a PNG that Pillow accepts by default."""
MAX_TEXT = 64 << 20
"""Characters in a text chunk that are accepted: editing software writes its history there, and pixels are intact."""

MAX_SLOWLY = 1 << 22
"""Most pixels of an image that Pillow decodes in Python (`_SLOW`), with some microseconds for each: ten seconds."""
_SLOW = ("ppm", "ppm_plain", "qoi", "dds_rgb", "bmp_rle")
"""Decoders written in Python: PPM as text or with few levels, QOI, DDS without compression, compressed BMP."""
_ICON = b"\0\0\1\0"

# Text stays limited: chunks are compressed, so a small file could need any amount of memory.
PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT
PngImagePlugin.MAX_TEXT_MEMORY = 4 * MAX_TEXT
# Pillow raises at twice its own limit, before it decodes anything.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# A library that is imported beside ours could have set it; a truncated image would then be grey below the cut.
ImageFile.LOAD_TRUNCATED_IMAGES = False


class UnreadableImageError(Exception):
    """The bytes are not a usable image; `reason` is the name under which the report counts it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def open_image(data: bytes) -> Image.Image:
    """Open an image without decoding its pixels.

    Raises:
        UnreadableImageError: zero_bytes, not_an_image, unsupported_format, too_large, truncated or corrupt.
    """
    if not data:
        raise UnreadableImageError("zero_bytes")
    if len(data) > MAX_BYTES:
        raise UnreadableImageError("too_large", f"{len(data)} bytes, more than {MAX_BYTES}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check_pieces(data)
            image = _opened(data)
            _check_costs(image, data)
        except UnidentifiedImageError:
            raise _not_opened(data) from None
        except UnreadableImageError:
            raise
        except Exception as error:  # noqa: BLE001 - Pillow's plugins raise anything on damaged data
            raise unreadable(error) from None
    return image


def decode_image(data: bytes) -> Image.Image:
    """Open an image and decode its first frame; mode and orientation are left as they are (see model/pixels.py).

    Raises:
        UnreadableImageError: as `open_image`.
    """
    image = open_image(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
        except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on damaged data
            raise unreadable(error) from None
    return image


def read_image(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: it cannot be read, or is a folder or socket.
        UnreadableImageError: not_a_file (a pipe or device), or too_large; neither is read.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError("not_a_file", str(path))
        if status.st_size > MAX_BYTES:
            raise UnreadableImageError("too_large", f"{status.st_size} bytes, more than {MAX_BYTES}")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe too, which without O_NONBLOCK would wait for another program to write into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def unreadable(error: Exception) -> UnreadableImageError:
    """What an error of Pillow means: too_large, truncated or corrupt."""
    message = f"{type(error).__name__}: {error}"[:200]
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return UnreadableImageError("too_large", message)
    return UnreadableImageError("truncated" if "truncated" in message.lower() else "corrupt", message)


def _opened(data: bytes) -> Image.Image:
    """Open an image of any of the formats.

    Raises:
        UnidentifiedImageError: it is of none of them.
        UnreadableImageError: unsupported_format (a plug-in is missing).
    """
    try:
        return Image.open(io.BytesIO(data), formats=OPENED)
    except UnidentifiedImageError:
        name = recognised(data)
        if not name:
            raise
    if needed := missing_plug_in(name):
        raise UnreadableImageError("unsupported_format", f"{needed}, or save it as JPEG")
    return Image.open(io.BytesIO(data), formats=(name,))


def _not_opened(data: bytes) -> UnreadableImageError:
    """Why no plugin has opened `data`."""
    Image.init()
    # Some look at bytes that a short file lacks.
    beginning = data[:16].ljust(16, b"\0")
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        if name not in FORMATS and accept is not None and accept(beginning):
            return UnreadableImageError("unsupported_format", name)
    return UnreadableImageError("not_an_image", f"{len(data)} bytes that begin with {data[:16]!r}")


def _check_costs(image: Image.Image, data: bytes) -> None:
    """Raise UnreadableImageError if decoding would cost too much, as far as the header of the image states it."""
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UnreadableImageError("too_large", f"{width} x {height} pixels")
    if image.format in ("JPEG", "MPO"):
        # In the data of a scan 0xff is followed by 0: only a scan begins like this (or one of an embedded preview).
        scans = data.count(b"\xff\xda")
        if width * height * scans > MAX_SCANNED:
            raise UnreadableImageError("too_large", f"{width} x {height} pixels in {scans} scans")
    slow = [tile[0] for tile in getattr(image, "tile", ()) if tile[0] in _SLOW]
    if slow and width * height > MAX_SLOWLY:
        raise UnreadableImageError("too_large", f"{width} x {height} pixels of {image.format}, which is decoded slowly")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = [image.tag_v2.get(tag, 1) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        if all(isinstance(side, int) for side in tile) and tile[0] * tile[1] > MAX_PIXELS:
            raise UnreadableImageError("too_large", f"tiles of {tile[0]} x {tile[1]} pixels")


def _check_pieces(data: bytes) -> None:
    """Raise UnreadableImageError if Pillow would have to read too many pieces of a file."""
    pieces: Iterator[int] = iter(())
    if data.startswith(_ICON):
        # Pillow decodes an icon when it opens it.
        width, height = largest_icon(data)
        if width * height > MAX_PIXELS:
            raise UnreadableImageError("too_large", f"an icon of {width} x {height} pixels")
    if data.startswith(b"\x89PNG"):
        pieces = _png_chunks(data)
    elif data.startswith(b"GIF8"):
        pieces = _gif_blocks(data)
    elif data.startswith((b"II", b"MM")):
        pieces = _tiff_strips(data)
    total = 0
    for count in pieces:
        total += count
        if total > MAX_PIECES:
            raise UnreadableImageError("too_large", f"more than {MAX_PIECES} chunks, blocks or strips")


def _png_chunks(data: bytes) -> Iterator[int]:
    """One for every chunk."""
    at = 8
    while at + 8 <= len(data):
        yield 1
        at += 12 + int.from_bytes(data[at : at + 4])


def _gif_blocks(data: bytes) -> Iterator[int]:
    """One for every block before the first frame."""
    at = 13 + (3 << (data[10] % 8 + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    while data[at : at + 1] == b"!":
        at += 2
        while at < len(data) and data[at]:
            yield 1
            at += 1 + data[at]
        at += 1


def _tiff_strips(data: bytes) -> Iterator[int]:
    """The numbers of strips and of tiles that the first directory states."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    head, entry = (f"{order}Q", f"{order}HHQ8x") if big else (f"{order}H", f"{order}HHI4x")
    try:
        (at,) = struct.unpack_from(f"{order}Q", data, 8) if big else struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(head, data, at)
        first = at + struct.calcsize(head)
        for number in range(min(entries, MAX_PIECES)):
            tag, _, count = struct.unpack_from(entry, data, first + number * struct.calcsize(entry))
            if tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS):
                yield count
    except struct.error:
        return  # cut off; Pillow will find it
