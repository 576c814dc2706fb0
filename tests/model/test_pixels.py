"""Every image becomes upright RGB of 8 bits: transparency on white, more bits scaled, damaged EXIF data ignored."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from model.pixels import convert, orientation, to_rgb

BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)


def saved(image: Image.Image, format_: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def icon() -> Image.Image:
    """A black square on a transparent ground whose hidden colour is black too."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (2, 2, 6, 6))
    return image


def palette_icon() -> Image.Image:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(1, (2, 2, 6, 6))
    return image


def grey_icon(mode: str) -> Image.Image:
    image = Image.new(mode, (8, 8), 7)
    image.paste(0, (2, 2, 6, 6))
    return image


ICONS = {
    "RGBA png": lambda: saved(icon(), "PNG"),
    "RGBA webp": lambda: saved(icon(), "WEBP", lossless=True, exact=True),
    "RGBA tiff": lambda: saved(icon(), "TIFF"),
    "LA png": lambda: saved(icon().convert("LA"), "PNG"),
    "RGBa": lambda: icon().convert("RGBa"),
    "La": lambda: icon().convert("LA").convert("La"),
    "PA": lambda: icon().convert("PA"),
    "P png": lambda: saved(palette_icon(), "PNG", transparency=0),
    "P png, bytes": lambda: saved(palette_icon(), "PNG", transparency=bytes([0, 255])),
    "P gif": lambda: saved(palette_icon(), "GIF", transparency=0),
    "L png": lambda: saved(grey_icon("L"), "PNG", transparency=7),
    "RGB png": lambda: saved(grey_icon("L").convert("RGB"), "PNG", transparency=(7, 7, 7)),
    "I;16 png": lambda: saved(grey_icon("I;16"), "PNG", transparency=7),
}


@pytest.mark.parametrize("name", ICONS)
def test_what_is_transparent_is_white(name):
    rgb, changes = convert(ICONS[name]())
    assert rgb.mode == "RGB" and "on-white" in changes
    assert rgb.getpixel((0, 0)) == WHITE and rgb.getpixel((3, 3)) == BLACK


def test_a_bilevel_image_with_a_transparent_level():
    image = Image.new("1", (4, 4), 1)
    image.putpixel((1, 1), 0)
    image.info["transparency"] = 0
    assert to_rgb(image).getcolors() == [(16, WHITE)]
    image.info["transparency"] = 1
    assert to_rgb(image).getpixel((1, 1)) == BLACK and to_rgb(image).getpixel((0, 0)) == WHITE


def test_half_transparent_pixels_are_mixed_with_white():
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    assert to_rgb(image).getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBX"])
def test_an_opaque_image_is_as_pillow_converts_it(mode):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGBA").convert(mode)
    rgb, changes = convert(image)
    assert changes == () and np.array_equal(np.asarray(rgb), np.asarray(image.convert("RGB")))


def grey_tiff(values: np.ndarray, **tags: int) -> Image.Image:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag.removeprefix("tag"))] = value
    return saved(Image.fromarray(values), "TIFF", tiffinfo=info)


def twelve_bit_tiff() -> Image.Image:
    """Two pixels of 12 bits, 0x800 and 0xfff, written by hand: Pillow reads such files but does not write them."""
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    ifd = len(entries).to_bytes(2, "little") + b"".join(
        tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + value.to_bytes(4, "little") for tag, value in entries
    )
    data = b"II*\x00" + (12).to_bytes(4, "little") + b"\x80\x0f\xff\x00" + ifd + bytes(4)
    return Image.open(io.BytesIO(data))


def test_twelve_bits_become_eight():
    rgb, changes = convert(twelve_bit_tiff())
    assert changes == ("12-bit",) and [rgb.getpixel((x, 0))[0] for x in (0, 1)] == [128, 255]
    declared = grey_tiff(np.array([[0, 2048, 4095]], np.uint16), tag281=4095)
    rgb, changes = convert(declared)
    assert changes == ("12-bit",) and np.asarray(rgb)[0, :, 1].tolist() == [0, 128, 255]


def test_sixteen_bits_become_eight_by_their_range():
    rgb, changes = convert(grey_tiff(np.array([[0, 255, 256, 32768, 65535]], np.uint16)))
    assert changes == ("16-bit",) and np.asarray(rgb)[0, :, 2].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected", "changes"),
    [
        ([0.0, 0.25, 1.0], [0, 64, 255], ("float",)),
        ([0.2, 0.4, 0.6], [51, 102, 153], ("float",)),
        ([0.0, 99.6, 255.0], [0, 100, 255], ()),
        ([-1.0, 0.0, 1.0], [0, 128, 255], ("float",)),
        ([0.0, 500.0, 1000.0], [0, 128, 255], ("float",)),
        ([float("nan"), 0.5, float("inf")], [0, 128, 255], ("float",)),
        ([float("nan")] * 3, [0, 0, 0], ("float",)),
        ([1e38, -1e38, 0.0], [255, 0, 128], ("float",)),
    ],
)
def test_float_levels_are_scaled_and_not_clipped(values, expected, changes):
    converted = convert(grey_tiff(np.array([values], np.float32)))
    assert np.asarray(converted.image)[0, :, 0].tolist() == expected and converted.changes == changes


@pytest.mark.parametrize(
    ("values", "expected", "changes"),
    [
        ([0, 100, 255], [0, 100, 255], ()),
        ([0, 32768, 65535], [0, 128, 255], ("16-bit",)),
        ([0, 1 << 30, (1 << 31) - 1], [0, 128, 255], ("32-bit",)),
        ([-100, 0, 100], [0, 128, 255], ("32-bit",)),
    ],
)
def test_integer_levels_are_scaled_and_not_clipped(values, expected, changes):
    converted = convert(grey_tiff(np.array([values], np.int32)))
    assert np.asarray(converted.image)[0, :, 0].tolist() == expected and converted.changes == changes


def test_an_image_is_turned_once_only():
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = saved(image, "PNG", exif=exif)
    once = to_rgb(lying)
    assert once.size == (2, 3) and once.getpixel((1, 0)) == RED
    assert np.array_equal(np.asarray(to_rgb(once)), np.asarray(once))


@pytest.mark.parametrize("exif", [b"Exif\x00\x00no tags at all", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"\x00", b""])
def test_damaged_exif_data_leave_an_image_upright(exif):
    image = saved(Image.new("RGB", (3, 2)), "JPEG", exif=exif)
    assert orientation(image) == 1 and to_rgb(image).size == (3, 2)
