"""Images: damaged and constructed ones through the check of media shards and the processor of a model.

An image is either rejected under a reason, or every later reader decodes it. Neither raises anything else, takes long,
or fills the memory.
"""

import io
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from transformers import CLIPImageProcessorPil

from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.inference.image_files import decode_image
from scripts.media.image_check import UnreadableImageError, check_image
from tests.torture.adversary import Report
from tests.torture.batch import seen
from tests.torture.mutation import changed_bytes

IMAGES_OF_A_BATCH = 150
SECONDS = 20.0
"""Of CPU time, in which one image has to be checked and converted."""
_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I", "F", "I;16", "HSV", "LAB")
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "ICO", "TGA", "JPEG2000", "AVIF")
_SIDES = (1, 2, 3, 15, 16, 31, 32, 33, 64, 200)


def batch(draw: random.Random, folder: Path, report: Report, begin: Callable[[str], None]) -> None:
    """Check images of all kinds, and convert those that pass as training, evaluation and serving do."""
    for number in range(IMAGES_OF_A_BATCH):
        name, data = draw.choice((_plain, _damaged, _damaged, _bomb, _narrow, _spliced))(draw)
        path = f"image{number}{draw.choice(('.jpg', '.png', '.webp', '.gif', '.tif', '.bmp', ''))}"
        begin(f"{name} of {len(data)} bytes, as {path}")
        (folder / "image").write_bytes(data)
        started = time.process_time()
        _attack(name, data, path, report)
        seconds = time.process_time() - started
        if seconds > SECONDS:
            report.violation("hangs", f"{name} of {len(data)} bytes took {seconds:.0f} s")
            return


def _attack(name: str, data: bytes, path: str, report: Report) -> None:
    try:
        info = check_image(data, path)
    except UnreadableImageError as error:
        report.note(f"rejected: {error.reason}")
        return
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        report.violation("tracebacks", f"check_image, {name}: {seen(error)}")
        return
    try:
        image = decode_image(data, name)
        pixels = processor().preprocess_image(image)
    except UserError as error:
        report.violation("differences", f"{name} passed the check as {info}, but: {error}")
        return
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        report.violation("tracebacks", f"{name} passed the check as {info}, but: {seen(error)}")
        return
    if image.size != (info.width, info.height) or pixels.dtype != np.uint8 or pixels.shape != (3, 32, 32):
        report.violation("differences", f"{name} is {info} for the check, and {image.size} for its reader")
    report.note("decoded")


@cache
def processor() -> Any:
    """A processor that needs no model: images of 32 x 32 pixels, resized and cropped as CLIP does."""
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    made = VisualChatProcessor.__new__(VisualChatProcessor)
    made.image_processor = CLIPImageProcessorPil(**settings)
    return made


def _picture(draw: random.Random, width: int, height: int, mode: str = "RGB") -> Image.Image:
    image = Image.frombytes("RGB", (width, height), draw.randbytes(3 * width * height))
    if mode == "I;16":
        return image.convert("I").convert("I;16")
    if mode in ("HSV", "LAB", "YCbCr", "CMYK", "1", "L", "P", "RGBA", "LA", "RGB"):
        return image.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (width, height))
    return image.convert("L").convert(mode)


def _saved(draw: random.Random, image: Image.Image, form: str) -> bytes:
    options: dict[str, Any] = {}
    if form in ("GIF", "WEBP", "TIFF", "MPO", "PNG") and draw.random() < 0.3:
        options = {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)] * 3}
    if form in ("JPEG", "PNG", "WEBP", "TIFF") and draw.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = draw.choice((0, 1, 3, 6, 8, 9, 65535))
        options["exif"] = exif.tobytes() if form != "TIFF" else exif
    if form == "PNG" and draw.random() < 0.2:
        text = PngImagePlugin.PngInfo()
        text.add_text("history", "layer " * draw.choice((10, 400_000)), zip=True)
        options["pnginfo"] = text
    if form == "PNG" and image.mode in ("L", "RGB", "P") and draw.random() < 0.3:
        options["transparency"] = {"L": 0, "RGB": (0, 0, 0), "P": 3}[image.mode]
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _plain(draw: random.Random) -> tuple[str, bytes]:
    """A valid image of a random mode, format and size."""
    while True:
        mode, form = draw.choice(_MODES), draw.choice(_FORMATS)
        image = _picture(draw, draw.choice(_SIDES), draw.choice(_SIDES), mode)
        try:
            return f"{form} of mode {mode}, {image.size}", _saved(draw, image, form)
        except (OSError, KeyError, ValueError, SystemError, AttributeError, TypeError):
            continue  # Pillow writes no such images


def _damaged(draw: random.Random) -> tuple[str, bytes]:
    name, data = _plain(draw)
    return f"damaged {name}", changed_bytes(draw, data)


def _spliced(draw: random.Random) -> tuple[str, bytes]:
    """The beginning of one image and the end of another."""
    (first, data), (second, other) = _plain(draw), _plain(draw)
    return f"{first} and then {second}", data[: draw.randrange(len(data))] + other[draw.randrange(len(other)) :]


def _png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    def chunks() -> Iterator[bytes]:
        yield b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        yield b"IDAT" + pixels
        yield b"IEND"

    framed = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _bomb(draw: random.Random) -> tuple[str, bytes]:
    """A small file that claims very many pixels or frames."""
    side = draw.choice((8191, 16_384, 60_000, 2**31 - 1))
    if draw.random() < 0.5:
        return f"PNG that claims {side} x {side}", _png(side, side, 8, 2, zlib.compress(bytes(100)))
    width, height = min(side, 65_535), draw.choice((2, 8000, 65_535))
    kind = draw.choice(("GIF", "BMP", "TIFF", "WEBP", "frames"))
    if kind == "frames":
        frames = [Image.new("L", (64, 64), number % 256) for number in range(800)]
        file = io.BytesIO()
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
        return "GIF of 800 frames", file.getvalue()
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    data = bytearray(file.getvalue())
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "WEBP":
        data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    else:
        data = bytearray(bytes(data).replace(struct.pack("<HHI", 256, 4, 16), struct.pack("<HHI", 256, 4, width)))
    return f"{kind} that claims {width} x {height}", bytes(data)


def _narrow(draw: random.Random) -> tuple[str, bytes]:
    """A valid image, far longer than wide, whose shortest edge a resize to a square input would enlarge."""
    length, width = draw.choice((3000, 60_000, 500_000, 2_000_000)), draw.choice((2, 3, 7))
    pixels = zlib.compress(bytes((3 * length + 1) * width), 9)
    if draw.random() < 0.5:
        pixels = zlib.compress(bytes((3 * width + 1) * length), 9)
        return f"PNG of {width} x {length}", _png(width, length, 8, 2, pixels)
    return f"PNG of {length} x {width}", _png(length, width, 8, 2, pixels)
