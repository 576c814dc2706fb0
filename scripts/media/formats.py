"""Formats of images: those that are opened, by what they are recognised, and the extensions of their files.

Pillow reads more, which are rare, and some of which start other programs (EPS) or need libraries that nobody checks.
A format is recognised by the content, whatever the name of the file. HEIF and JPEG XL need plug-ins of Pillow, which
are used where they are installed.
"""

import importlib
import struct

from PIL import (
    AvifImagePlugin,
    DdsImagePlugin,
    IcoImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    MpoImagePlugin,
    PcxImagePlugin,
    PpmImagePlugin,
    PsdImagePlugin,
    QoiImagePlugin,
    SgiImagePlugin,
    SunImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from scripts.media.keys import AVIF_BRANDS, HEIF_BRANDS

REGISTERED = (
    *(
        AvifImagePlugin,
        DdsImagePlugin,
        IcoImagePlugin,
        Jpeg2KImagePlugin,
        MpoImagePlugin,
        PcxImagePlugin,
        PpmImagePlugin,
    ),
    *(PsdImagePlugin, QoiImagePlugin, SgiImagePlugin, SunImagePlugin, TgaImagePlugin, TiffImagePlugin, WebPImagePlugin),
)
"""Imported to be registered: Pillow would import all of its plug-ins for the first of these."""

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif")
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": _JPEG,
    # Phones write JPEG files with further images appended.
    "MPO": (*_JPEG, ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c", ".jpc", ".jpf"),
    "HEIF": (".heic", ".heif", ".hif", ".heics"),
    "JXL": (".jxl",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TGA": (".tga",),
    "ICO": (".ico",),
    "PCX": (".pcx",),
    "DDS": (".dds",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".bw"),
    "PSD": (".psd",),
    "SUN": (".ras",),
}
"""Pillow's name of a format -> the usual extensions of its files, first the one that shards use."""

_PLUG_INS = {
    "HEIF": ("pillow_heif", "pillow-heif"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin"),
    "AVIF": ("pillow_avif", "pillow-avif-plugin"),
}
"""Format -> the module of the plug-in that reads it, and its package. Most builds of Pillow read AVIF themselves."""
_BRANDS = {"HEIF": HEIF_BRANDS, "AVIF": AVIF_BRANDS}
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
OPENED = tuple(name for name in FORMATS if name not in ("MPO", "TGA", "HEIF", "JXL"))
"""Formats that Pillow recognises; the files of MPO are opened as JPEG, the others are recognised here."""

_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
_TGA_HEADER = struct.Struct("<3B2HB4H2B")
_COLOURED, _COMPRESSED = (1, 9), 8
_LONGEST_RUN = 128


def recognised(data: bytes) -> str:
    """The format of data that Pillow does not recognise by itself: HEIF, JXL, AVIF or TGA; "" if it is none of them."""
    if data[4:8] == b"ftyp":
        return next((name for name, brands in _BRANDS.items() if data[8:12] in brands), "")
    if data.startswith(_JXL):
        return "JXL"
    return "TGA" if _is_tga(data) else ""


def missing_plug_in(name: str) -> str:
    """Load the plug-in that reads a format; returns what to install if it is not there, or ""."""
    if name not in _PLUG_INS or name in Image.OPEN:
        return ""
    module, package = _PLUG_INS[name]
    try:
        plug_in = importlib.import_module(module)
    except ImportError:
        return f"{name} needs the plug-in {package}: pip install {package}"
    if name == "HEIF":
        plug_in.register_heif_opener()
    return ""


def largest_icon(data: bytes) -> tuple[int, int]:
    """Width and height of the image with the most pixels in an ICO, whose directory may state smaller ones."""
    (count,) = struct.unpack_from("<H", data, 4)
    largest = (0, 0)
    for number in range(min(count, (len(data) - 6) // 16)):
        (offset,) = struct.unpack_from("<I", data, 6 + 16 * number + 12)
        image = data[offset : offset + 24]
        if len(image) < 24:
            continue
        sizes = struct.unpack(">II", image[16:]) if image.startswith(b"\x89PNG") else struct.unpack("<ii", image[4:12])
        size = (abs(sizes[0]), abs(sizes[1]))
        largest = max(largest, size, key=lambda each: each[0] * each[1])
    return largest


def _is_tga(data: bytes) -> bool:
    """Whether data is a TGA, which has no signature: by its footer, or by a header that fits the number of bytes."""
    if len(data) < _TGA_HEADER.size:
        return False
    name, coloured, kind, _, colours, colour_bits, _, _, width, height, bits, _ = _TGA_HEADER.unpack_from(data)
    if coloured not in (0, 1) or kind not in (1, 2, 3, 9, 10, 11) or bits not in (8, 16, 24, 32) or not width * height:
        return False
    if (kind in _COLOURED) != bool(coloured):
        return False
    if data.endswith(_TGA_FOOTER):
        return True
    pixels = len(data) - _TGA_HEADER.size - name - (colours * colour_bits // 8 if coloured else 0)
    size = width * height * bits // 8
    if kind < _COMPRESSED:
        return pixels == size
    return width * height // _LONGEST_RUN * (1 + bits // 8) <= pixels <= size + width * height
