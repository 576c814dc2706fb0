"""What an image may cost: refused before it is decoded, with a reason; what passes is read alike by every program."""

import io
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from model.cropping import processed_pixels
from scripts.common.errors import UserError
from scripts.inference.decoded_images import DecodedImageCache
from scripts.inference.image_files import decode_image as decode_for_people
from scripts.inference.image_files import read_image_file
from scripts.media import opening
from scripts.media.image_check import check_image
from scripts.media.opening import MAX_BYTES, UnreadableImageError, decode_image, open_image, read_image
from scripts.serving.errors import ApiError
from scripts.serving.image_store import ImageStore

PROCESSOR = SimpleNamespace(preprocess_image=lambda image: processed_pixels(CLIPImageProcessorPil(), image))


def encoded(format_, size=(40, 30), mode="RGB", **options):
    buffer = io.BytesIO()
    noise = random.Random(0).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).convert(mode).save(buffer, format_, **options)
    return buffer.getvalue()


def chunk(kind, content=b""):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *middle, depth=8, colour=0):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    bits = width * depth * (3 if colour == 2 else 1)
    packer = zlib.compressobj()
    rows = b"".join(packer.compress(bytes(1 + (bits + 7) // 8)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(middle) + chunk(b"IDAT", rows) + chunk(b"IEND")


def gif(comment_blocks):
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"!\xfe" + b"\x01a" * comment_blocks + b"\0," + struct.pack("<HHHHB", 0, 0, 4, 4, 0) + b"\x02\0;"


def tiff(tags, order="<", pixels=bytes(64)):
    base = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    entries = {tag: (1, value) for tag, value in base.items()} | tags
    entries = {tag: each for tag, each in entries.items() if each}
    directory = struct.pack(f"{order}H", len(entries))
    for tag, (count, value) in sorted(entries.items()):
        directory += struct.pack(f"{order}HHII", tag, 4, count, value)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8 + len(pixels)) + pixels + directory + bytes(4)


def scans(width, height, number):
    """A progressive JPEG of one colour whose last scan occurs `number` times."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * number + b"\xff\xd9"


COSTLY = {
    "2,000,000 x 2 pixels in 600 bytes": lambda: png(2_000_000, 2, depth=1),
    "2 x 2,000,000": lambda: png(2, 2_000_000, depth=1),
    "more pixels than bytes": lambda: png(10_000, 9_000, depth=1),
    "1,000 scans": lambda: scans(1500, 1500, 1000),
    "300,000 chunks": lambda: png(4, 4, chunk(b"tEXt", b"a\0b") * 300_000),
    "300,000 empty chunks of pixels": lambda: png(4, 4, chunk(b"IDAT") * 300_000),
    "300,000 blocks before a frame": lambda: gif(300_000),
    "300,000 strips": lambda: tiff({273: (300_000, 8), 279: (300_000, 8)}),
    "300,000 strips, big-endian": lambda: tiff({273: (300_000, 8), 279: (300_000, 8)}, ">"),
    "a tile of 2^32 pixels": lambda: tiff(
        {273: None, 278: None, 279: None, 322: (1, 1 << 16), 323: (1, 1 << 16), 324: (1, 8), 325: (1, 64)}
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_costs_too_much_is_refused_before_it_is_decoded(name, monkeypatch):
    data = COSTLY[name]()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(UnreadableImageError) as caught:
        open_image(data)
    assert caught.value.reason == "too_large", caught.value


def test_the_server_refuses_the_same_with_the_reason():
    with pytest.raises(ApiError) as caught:
        ImageStore(1 << 30, 1 << 20, 1 << 20).upload("client", "x.png", "vision", png(2_000_000, 2, depth=1))
    assert caught.value.status == 400 and "too large (2000000 x 2 pixels)" in str(caught.value)


def test_what_is_usual_is_not_refused():
    assert open_image(scans(1500, 1500, 20)).size == (1500, 1500)
    assert open_image(png(4, 4, chunk(b"tEXt", b"a\0b") * 1000)).size == (4, 4)
    assert open_image(tiff({})).size == open_image(tiff({}, ">")).size == (8, 8)


def test_bytes_are_counted_before_they_are_read(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded("JPEG"))
    assert read_image(path) == path.read_bytes()
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(UnreadableImageError, match="too_large: 268435457 bytes"):
        read_image(path)
    with pytest.raises(UserError, match=r"image x.jpg is too large"):
        read_image_file(path, "x.jpg")


def test_text_and_profiles_of_a_png_are_bounded():
    packed = zlib.compress(bytes(200 << 20))
    for kind in (b"zTXt", b"iCCP"):
        with pytest.raises(UnreadableImageError):
            decode_image(png(4, 4, chunk(kind, b"a\0\0" + packed)))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_not_a_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "x.jpg")
    with pytest.raises((UnreadableImageError, OSError), match=r"not_a_file|directory"):
        read_image(tmp_path / "x.jpg")
    with pytest.raises(UserError, match=r"image x.jpg"):
        read_image_file(tmp_path / "x.jpg", "x.jpg")


def test_the_memory_for_a_long_image_is_bounded():
    """60,000 x 2 pixels: the whole image enlarged would take 10 GB."""
    program = """
import resource, sys
from transformers import CLIPImageProcessorPil
from types import SimpleNamespace
from model.cropping import processed_pixels
from scripts.inference.decoded_images import DecodedImageCache
from scripts.media import opening
from scripts.media.image_check import check_image
from tests.scripts.media.test_opening import png
processor = CLIPImageProcessorPil()
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for size in ((60_000, 2), (2, 60_000)):
    data = png(*size)
    check_image(data, "x.png")
    cache = DecodedImageCache(SimpleNamespace(preprocess_image=lambda image: processed_pixels(processor, image)))
    print(cache.get("x", data).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "(3, 224, 224)\n(3, 224, 224)\n", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80), "unsupported_format: HEIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_format: EPS"),
        (b"x", "not_an_image"),
        (tiff({256: None}), "not_an_image|corrupt"),
        (tiff({256: None, 257: None}, ">"), "not_an_image|corrupt"),
    ],
)
def test_what_no_decoder_of_ours_reads_says_why(data, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        check_image(data, "x")


@pytest.mark.parametrize(
    ("format_", "name", "extension"),
    [
        ("AVIF", "x.avif", "avif"),
        ("JPEG2000", "x.jp2", "jp2"),
        ("JPEG", "x.jfif", "jpg"),
        ("JPEG", "x.jpe", "jpg"),
        ("JPEG", "x", "jpg"),
    ],
)
def test_other_endings_of_images(format_, name, extension):
    info = check_image(encoded(format_), name)
    assert info.format == extension and info.flags == ()


def animation(format_, frames=4):
    images = [Image.new("RGB", (20, 20), (70 * number, 0, 0)) for number in range(frames)]
    buffer = io.BytesIO()
    images[0].save(buffer, format_, save_all=True, append_images=images[1:], duration=10)
    return buffer.getvalue()


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_every_cut_of_an_animation_is_an_image_or_refused(format_):
    data = animation(format_)
    assert "frames" in check_image(data, "x").flags
    for end in range(0, len(data), 1 + len(data) // 150):
        _same_everywhere(data[:end])


def test_damage_behind_the_second_frame_does_not_matter():
    """Only the first frame is used, and the second one shows that there are several."""
    data = animation("GIF")
    assert "frames" in check_image(data[:-20], "x.gif").flags
    assert check_image(data[: data.index(b"\x21\xf9", 60)] + b"\x3b", "x.gif").flags == ("palette",)


@pytest.mark.parametrize("exif", [b"Exif\0\0no tags at all", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"])
def test_a_jpeg_with_damaged_exif_data_is_read_by_all(exif):
    data = encoded("JPEG", exif=exif)
    assert check_image(data, "x.jpg").orientation == 1
    _same_everywhere(data)


def test_no_other_program_opens_or_converts_images():
    """The synthetic world makes its own, which nobody else has touched."""
    scripts = Path(opening.__file__).parents[1]
    files = [path for path in scripts.rglob("*.py") if path.parent.name != "synthetic" and path.name != "opening.py"]
    wrong = re.compile(r"Image\.open\(|\.convert\(\"RGB\"|exif_transpose")
    assert len(files) > 200 and not [path.name for path in files if wrong.search(path.read_text(encoding="utf-8"))]


ORIGINALS = {
    "jpeg": lambda: encoded("JPEG", exif=_exif()),
    "progressive": lambda: encoded("JPEG", progressive=True),
    "cmyk": lambda: encoded("JPEG", mode="CMYK"),
    "png": lambda: encoded("PNG", exif=_exif()),
    "palette": lambda: encoded("PNG", mode="P", transparency=3),
    "rgba": lambda: encoded("PNG", mode="RGBA"),
    "16": lambda: encoded("PNG", mode="I;16"),
    "webp": lambda: encoded("WEBP"),
    "gif": lambda: animation("GIF"),
    "bmp": lambda: encoded("BMP"),
    "tiff": lambda: encoded("TIFF"),
    "lzw": lambda: encoded("TIFF", compression="tiff_lzw"),
    "float": lambda: encoded("TIFF", mode="F"),
    "avif": lambda: encoded("AVIF"),
    "jp2": lambda: encoded("JPEG2000"),
    "by hand": lambda: tiff({}),
}


def _exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    return exif.tobytes()


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_mutated_image_is_read_by_all_programs_or_by_none(name):
    original = ORIGINALS[name]()
    _same_everywhere(original)
    chooser = random.Random(name)
    for number in range(40):
        data = bytearray(original)
        # Headers are short, so that half of the changes go there.
        end = min(len(data), 120 if number % 2 else len(data))
        for _ in range(chooser.randrange(1, 8)):
            data[chooser.randrange(end)] = chooser.choice((0, 1, 127, 128, 255, chooser.randrange(256)))
        if number % 5 == 0:
            del data[chooser.randrange(len(data)) :]
        _same_everywhere(bytes(data))


def _same_everywhere(data):
    """Check an image; if it is accepted, every program must read it, and all of them the same pixels."""
    try:
        check_image(data, "x")
    except UnreadableImageError:
        return
    expected = processed_pixels(CLIPImageProcessorPil(), decode_image(data))
    assert np.array_equal(DecodedImageCache(PROCESSOR).get("x", data), expected)
    assert np.array_equal(processed_pixels(CLIPImageProcessorPil(), decode_for_people(data, "x")), expected)
    assert np.array_equal(ImageStore(1 << 30, 1 << 20, 1 << 20).prepare("client", data, PROCESSOR, "x")[0], expected)
