"""Every format that is opened is recognised by its content, decoded by the one function, and has its extension."""

import io
import struct
import sys

import pytest
from PIL import Image

from scripts.media import formats, opening
from scripts.media.image_check import check_image
from scripts.media.keys import IMAGE_EXTENSIONS, extension_of, is_image
from scripts.media.opening import UnreadableImageError, decode_image

COLOUR = (200, 10, 10)


def encoded(kind, mode="RGB", size=(20, 10), **options):
    image = Image.new("RGB", size, COLOUR).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "extension"),
    [
        *(("AVIF", "avif"), ("BMP", "bmp"), ("DDS", "dds"), ("GIF", "gif"), ("ICO", "ico"), ("JPEG", "jpg")),
        *(("JPEG2000", "jp2"), ("PCX", "pcx"), ("PNG", "png"), ("PPM", "ppm"), ("QOI", "qoi"), ("SGI", "sgi")),
        *(("TGA", "tga"), ("TIFF", "tif"), ("WEBP", "webp")),
    ],
)
@pytest.mark.parametrize("name", ["picture", "picture.jfif"])
def test_a_format_is_recognised_by_its_content(kind, extension, name):
    data = encoded(kind)
    info = check_image(data, name)
    assert (info.format, info.width, info.height) == (extension, 20, 10)
    red, green, blue = decode_image(data).convert("RGB").getpixel((3, 3))
    assert abs(red - 200) < 5 and abs(green - 10) < 12 and abs(blue - 10) < 12
    assert extension_of(data[:32]) in ("", f".{extension}") and is_image(f"x.{extension}")


@pytest.mark.parametrize(
    "extension", [each for usual in formats.FORMATS.values() for each in usual if each not in (".rgb", ".bw")]
)
def test_every_usual_extension_is_that_of_an_image(extension):
    assert is_image(f"a/b{extension.upper()}")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("compression", [None, "tga_rle"])
def test_a_tga_without_its_footer(mode, compression):
    data = encoded("TGA", mode, compression=compression).removesuffix(b"\0\0\0\0\0\0\0\0TRUEVISION-XFILE.\0")
    assert not data.endswith(b"FILE.\0") and check_image(data, "x").format == "tga"
    with pytest.raises(UnreadableImageError):
        decode_image(data[:-1])


@pytest.mark.parametrize("kind", ["EPS", "ICNS", "SPIDER", "IM", "PDF"])
def test_other_formats_are_not_opened(kind):
    with pytest.raises(UnreadableImageError, match=r"unsupported_format|not_an_image"):
        decode_image(encoded(kind))


@pytest.mark.parametrize(
    ("data", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80), "pillow-heif"),
        (b"\xff\x0a" + bytes(80), "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(80), "pillow-jxl-plugin"),
    ],
)
def test_a_missing_plug_in_is_named(monkeypatch, data, package):
    monkeypatch.setitem(sys.modules, package.replace("-", "_").removesuffix("_plugin"), None)
    with pytest.raises(UnreadableImageError, match=f"unsupported_format: .* pip install {package}"):
        decode_image(data)


def test_an_icon_may_not_hold_a_larger_image_than_it_states(monkeypatch):
    png = encoded("PNG", size=(300, 300))
    icon = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png
    assert decode_image(icon).size == (300, 300)
    monkeypatch.setattr(opening, "MAX_PIXELS", 300 * 300 - 1)
    with pytest.raises(UnreadableImageError, match="too_large: an icon of 300 x 300"):
        decode_image(icon)


@pytest.mark.parametrize(
    "data",
    [
        b"P3\n4000 4000\n255\n",
        b"P6\n4000 4000\n100\n",
        b"qoif" + struct.pack(">II", 4000, 4000) + b"\3\0" + bytes(20),
        encoded("DDS")[:12] + struct.pack("<II", 4000, 4000) + encoded("DDS")[20:],
    ],
)
def test_what_is_decoded_in_python_has_fewer_pixels(data):
    with pytest.raises(UnreadableImageError, match="too_large: 4000 x 4000 pixels"):
        decode_image(data)
    with pytest.raises(UnreadableImageError, match=r"truncated|corrupt"):
        decode_image(encoded("PPM")[:-5])


def test_the_extensions_of_all_formats_are_those_of_images():
    """Of SGI two are left out, which other files have too."""
    of_formats = {extension for extensions in formats.FORMATS.values() for extension in extensions}
    assert of_formats - IMAGE_EXTENSIONS == {".rgb", ".bw"}
    assert of_formats >= IMAGE_EXTENSIONS
