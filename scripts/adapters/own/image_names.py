r"""Spellings of an image's name that mean the same file, though not the same characters.

They count only after the name as it was written:

    separators   "./a.jpg", "a//b.jpg" and "a\b.jpg" are paths of "a.jpg" and "a/b.jpg"
    Unicode      NFC: macOS stores "é" as "e" and an accent (NFD), other systems as one character
    case         file systems of Windows and macOS do not distinguish "Cat.JPG" and "cat.jpg"
    percent      "a%20b.jpg" of a URL is "a b.jpg"
"""

import posixpath
import unicodedata


def tidy(name: str) -> str:
    """`name` without "." parts and doubled slashes, which mean nothing in a path; ".." parts stay."""
    if "//" not in name and "./" not in name and not name.endswith("/."):
        return name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def loose(path: str) -> str:
    """What equal spellings of a path have in common: separators, NFC and case are made equal."""
    if path.isascii():
        return tidy(path.replace("\\", "/").strip()).lower()
    plain = tidy(unicodedata.normalize("NFC", path.replace("\\", "/")).strip())
    return unicodedata.normalize("NFC", plain.casefold())


def loose_name(path: str) -> str:
    """The last part of `loose(path)`."""
    return posixpath.basename(loose(path))


def stem(path: str) -> str:
    """The file name of a path without its extension."""
    return posixpath.splitext(posixpath.basename(path))[0]
