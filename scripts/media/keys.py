"""Keys of images: the part of a shard member's name before its extension.

A key is the path of the image below the data path without its extension, so that people recognise it. WebDataset ends a
key at the first dot and some readers truncate long names; a path with dots, special characters or too many letters gets
a key with a readable beginning and a hash of the path.
"""

import hashlib
import posixpath
import re
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_KEY_BYTES = 90
IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".hif", ".heics", ".jxl"}
    | {".jp2", ".j2k", ".jpx", ".j2c", ".jpc", ".jpf"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".ico", ".pcx", ".dds", ".qoi", ".sgi", ".psd", ".ras"}
)
"""Endings that only images have, in lower case: those of the formats in media/formats.py."""
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x0cJXL \r\n\x87\n",
    b"P5\n",
    b"P6\n",
    b"qoif\0",
    b"DDS |",
    b"8BPS\0",
)
"""First bytes of JPEG, PNG, GIF, TIFF, JPEG 2000, JPEG XL, PPM, QOI, DDS and PSD."""
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Sizes of the second header of a BMP: two letters alone are no signature."""
_SAFE = r"\A[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*\z"
_UNSAFE = re.compile(r"[^A-Za-z0-9_/-]+")
_HASH_DIGITS = 16
_EXTENSION = r"\.[^./]*\z"
_ONLY_DOTS_BEFORE = r"(\A|/)\.+[^./]*\z"


_EXTENSIONS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"II": ".tif",
    b"MM": ".tif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"\0\0\0\x0cjP": ".jp2",
    b"\xff\x4f\xff\x51": ".jp2",
    b"\0\0\0\x0cJXL": ".jxl",
    b"P": ".ppm",
    b"qoif": ".qoi",
    b"DDS": ".dds",
    b"8BPS": ".psd",
}


def is_image(path: str) -> bool:
    """Whether a file has the extension of an image and is not hidden."""
    return posixpath.splitext(path)[1].lower() in IMAGE_EXTENSIONS and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether the name of a file begins with a dot."""
    return posixpath.basename(path).startswith(".")


def is_image_data(beginning: bytes) -> bool:
    """Whether the first bytes of a file (32 or more) are those of an image, for a name that does not show it."""
    return (
        beginning.startswith(_SIGNATURES)
        or (beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP")
        or (beginning[4:8] == b"ftyp" and beginning[8:12] in HEIF_BRANDS + AVIF_BRANDS)
        or (beginning[:2] == b"BM" and int.from_bytes(beginning[14:18], "little") in _BMP_HEADERS)
    )


def extension_of(beginning: bytes) -> str:
    """The extension of an image with these first bytes (32 or more), with its dot; "": the format is unknown."""
    if not is_image_data(beginning):
        return ""
    if beginning[4:8] == b"ftyp":
        return ".avif" if beginning[8:12] in AVIF_BRANDS else ".heic"
    return next((extension for start, extension in _EXTENSIONS.items() if beginning.startswith(start)), "")


def keys_of(paths: pa.StringArray) -> pa.StringArray:
    """The key of each of `paths`; different paths have different keys, and equal paths the same.

    Two files that differ only in their extension, or in the case of letters, both get a hash. Works on columns: a
    source may have millions of images, nearly all of which have plain names.
    """
    stems = _stems(paths)
    plain = pc.and_(pc.match_substring_regex(stems, _SAFE), pc.less_equal(pc.binary_length(stems), MAX_KEY_BYTES))
    hashed = np.flatnonzero(~(plain.to_numpy(zero_copy_only=False) & _is_unique(stems, paths)))
    if not len(hashed):
        return stems
    keys = pa.array([_hashed(path) for path in paths.take(pa.array(hashed)).to_pylist()], pa.string())
    mask = np.zeros(len(paths), np.bool_)
    mask[hashed] = True
    return pc.replace_with_mask(stems, pa.array(mask), keys)


def _stems(paths: pa.StringArray) -> pa.StringArray:
    """`paths` without their extensions, as `posixpath.splitext` defines them: a name like ".jpg" has none."""
    without = pc.replace_substring_regex(paths, _EXTENSION, "")
    return pc.if_else(pc.match_substring_regex(paths, _ONLY_DOTS_BEFORE), paths, without)


def _is_unique(stems: pa.StringArray, paths: pa.StringArray) -> np.ndarray:
    """Whether no other path has the same stem, whatever the case of its letters, (paths,) bool."""
    numbers = pc.dictionary_encode(_lower(stems)).indices.to_numpy()
    unique = np.bincount(numbers, minlength=1)[numbers] == 1
    repeated = np.flatnonzero(~unique)
    # The same path may be listed twice, which makes no two of them.
    spellings = defaultdict(set)
    for number, path in zip(numbers[repeated].tolist(), paths.take(pa.array(repeated)).to_pylist(), strict=True):
        spellings[number].add(path)
    unique[repeated] = [len(spellings[number]) == 1 for number in numbers[repeated].tolist()]
    return unique


def _lower(texts: pa.StringArray) -> pa.StringArray:
    """`texts` in lower case as `str.lower` defines it, which knows more letters than Arrow."""
    lower = pc.ascii_lower(texts)
    other = pc.invert(pc.string_is_ascii(texts))
    if not pc.any(other).as_py():
        return lower
    return pc.replace_with_mask(lower, other, pa.array([text.lower() for text in texts.filter(other).to_pylist()]))


def _hashed(path: str) -> str:
    digest = hashlib.sha256(path.encode()).hexdigest()[:_HASH_DIGITS]
    readable = _UNSAFE.sub("_", posixpath.splitext(path)[0]).strip("/")
    return f"{readable[: MAX_KEY_BYTES - _HASH_DIGITS - 1]}-{digest}"
