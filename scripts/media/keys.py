"""Keys of images: the part of a shard member's name before its extension.

A key is the path of the image below the data path without its extension, so that people recognise it. WebDataset ends a
key at the first dot and some readers truncate long names; a path with dots, special characters or too many letters gets
a key with a readable beginning and a hash of the path.
"""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable

MAX_KEY_BYTES = 90
_IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_SAFE = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_UNSAFE = re.compile(r"[^A-Za-z0-9_/-]+")
_HASH_DIGITS = 16


def is_image(path: str) -> bool:
    """Whether a file has the extension of an image and is not hidden."""
    name = posixpath.basename(path)
    return posixpath.splitext(name)[1].lower() in _IMAGE_EXTENSIONS and not name.startswith(".")


def keys_of(paths: Iterable[str]) -> dict[str, str]:
    """The key of each of `paths`; different paths have different keys.

    Two files that differ only in their extension, or in the case of letters, both get a hash.
    """
    stems = {path: posixpath.splitext(path)[0] for path in paths}
    uses = Counter(stem.lower() for stem in stems.values())
    return {path: stem if _is_safe(stem) and uses[stem.lower()] == 1 else _hashed(path) for path, stem in stems.items()}


def _is_safe(stem: str) -> bool:
    return len(stem) <= MAX_KEY_BYTES and _SAFE.fullmatch(stem) is not None


def _hashed(path: str) -> str:
    digest = hashlib.sha256(path.encode()).hexdigest()[:_HASH_DIGITS]
    readable = _UNSAFE.sub("_", posixpath.splitext(path)[0]).strip("/")
    return f"{readable[: MAX_KEY_BYTES - _HASH_DIGITS - 1]}-{digest}"
