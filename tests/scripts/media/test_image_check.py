"""Which bytes are an image: decided by decoding all of them."""

import contextlib
import io
import random
import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from scripts.media.image_check import check_image
from scripts.media.opening import UnreadableImageError


def _encode(format_, size=(40, 30), mode="RGB", **options):
    buffer = io.BytesIO()
    noise = random.Random(0).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).convert(mode).save(buffer, format_, **options)
    return buffer.getvalue()


def _text(length):
    """A comment that editing software might leave in a PNG."""
    info = PngImagePlugin.PngInfo()
    info.add_text("history", "x" * length, zip=True)
    return info


def _bomb(width, height):
    """A PNG that claims to be huge."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100)))
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero_bytes"),
        (b"These are words, not pixels. " * 20, "not_an_image"),
        (_encode("JPEG")[:-200], "truncated"),
        (_encode("PNG")[:-300], "truncated"),
        (_encode("JPEG", size=(1, 1)), "one_pixel"),
        (_encode("GIF", size=(1, 50)), "one_pixel"),
        (_encode("EPS"), "unsupported_format"),
        (_bomb(10_000, 9_000), "too_large"),
        (_bomb(60_000, 60_000), "too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(data, reason):
    with pytest.raises(UnreadableImageError) as caught:
        check_image(data, "x.jpg")
    assert caught.value.reason == reason


@pytest.mark.parametrize("share", [tenth / 10 for tenth in range(10)])
def test_no_cut_of_a_jpeg_gets_through(share):
    data = _encode("JPEG")
    with pytest.raises(UnreadableImageError):
        check_image(data[: int(share * len(data))], "x.jpg")


def test_noise_never_ends_in_another_error():
    chooser = random.Random(1)
    for format_ in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        original = _encode(format_)
        for _ in range(60):
            damaged = bytearray(original)
            for _ in range(chooser.randrange(1, 30)):
                damaged[chooser.randrange(len(damaged))] = chooser.randrange(256)
            with contextlib.suppress(UnreadableImageError):
                check_image(bytes(damaged), "x")


def test_the_properties_of_a_good_image():
    info = check_image(_encode("JPEG"), "a/x.JPEG")
    assert (info.width, info.height, info.format, info.mode) == (40, 30, "jpg", "RGB")
    assert (info.orientation, info.flags) == (1, ())


@pytest.mark.parametrize(
    ("data", "path", "flags"),
    [
        (_encode("GIF", mode="P"), "x.jpg", ("palette", "extension")),
        (_encode("PNG", mode="L"), "x.png", ("grey",)),
        (_encode("JPEG", mode="CMYK"), "x.jpg", ("cmyk",)),
        (_encode("PNG", mode="RGBA"), "x.webp", ("alpha", "extension")),
        (_encode("PNG", mode="I;16"), "x.png", ("16-bit",)),
        (_encode("PNG", pnginfo=_text(2 << 20)), "x.png", ("long-text",)),
        (_encode("WEBP"), "x.webp", ()),
        (_encode("WEBP"), "folder.of/x", ()),
    ],
)
def test_oddities_are_flagged_and_kept(data, path, flags):
    assert check_image(data, path).flags == flags


def test_an_animation_and_an_orientation_are_noted():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert "frames" in check_image(buffer.getvalue(), "x.gif").flags
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = check_image(_encode("JPEG", exif=exif.tobytes()), "x.jpg")
    assert picture.orientation == 6 and picture.flags == ("rotated",)
    for nonsense in (0, 9, 77):
        exif[0x0112] = nonsense
        picture = check_image(_encode("JPEG", exif=exif.tobytes()), "x.jpg")
        assert picture.orientation == 1 and picture.flags == ()
