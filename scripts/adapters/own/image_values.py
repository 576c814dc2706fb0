"""Images as rows of own data give them: by name, as bytes, as base64 or a data URL, at a URL.

`image_value` reduces every form to one of three: a name that is looked up below the dataset's images, the encoded
bytes themselves, or a remote address, which is never fetched while data is built. Nothing is looked up or decoded here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import pybase64

from scripts.adapters.base import RowError
from scripts.media.keys import is_image_data
from scripts.media.opening import UnreadableImageError, open_image


@dataclass(frozen=True)
class ImageName:
    """The path or name of an image file, as the row has it."""

    name: str


@dataclass(frozen=True)
class ImageBytes:
    """The encoded bytes of an image; `name` is the path that the row gives beside them, or ""."""

    data: bytes
    name: str = ""


@dataclass(frozen=True)
class ImageAddress:
    """An http(s) or other remote address."""

    url: str


ImageValue = ImageName | ImageBytes | ImageAddress

_DATA = ("bytes", "base64", "b64_json", "b64", "data")
"""Members of an object that hold the image itself."""
_NESTED = ("image", "image_url", "source", "inline_data", "inlineData", "file_data", "input_image")
"""Members that may hold another object (or a name or address)."""
_NAMES = ("path", "file_name", "filename", "file", "src", "url", "uri", "file_uri", "fileUri")
"""Members that hold a name or an address; a local name comes before an address."""
_DEEPEST = 4

_LONGEST_PATH = 4096
"""Bytes of the longest path that Linux opens: a longer text is no name."""
_SHORTEST_BASE64 = 48
"""Characters of base64: the smallest image files, of one pixel, have more than 36 bytes."""
_SIGNATURE_CHARACTERS = 64
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA_URL = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")
_SPACE = re.compile(rb"\s+")
_OF_ANY_FILE = ("", "image", "application/octet-stream", "binary/octet-stream")
_NOT_RASTER = "image/svg"


def has_image(value: Any) -> bool:
    """Whether a value of a row gives anything: not None, and neither empty nor an object of such values."""
    if isinstance(value, dict):
        return any(has_image(each) for name, each in value.items() if name in (*_DATA, *_NESTED, *_NAMES))
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and (not hasattr(value, "__len__") or len(value) > 0)


def image_value(value: Any) -> ImageValue:
    """The image that a value of a row gives: a text, bytes, or an object with `bytes`, `path`, `url` or `image_url`.

    Bytes win over a name beside them. A text is a data URL, a URL, base64 of an image, or else a name.

    Raises:
        RowError: bad_image (no form of an image; the example is cut to a line).
    """
    return _of_text(value) if type(value) is str else _value(value, 0)


def _value(value: Any, depth: int) -> ImageValue:
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return ImageBytes(_not_empty(bytes(value)))
    if isinstance(value, dict) and depth < _DEEPEST:
        return _of_object(value, depth)
    if _are_bytes(value):
        return ImageBytes(bytes(value))
    raise _bad(f"{_shown(value)} is not an image: expected a path, bytes, base64, a data URL or a URL")


def _of_object(value: dict[str, Any], depth: int) -> ImageValue:
    """The image of an object; of several members the one that holds bytes, else a name, else an address."""
    name = ""
    for key in _NAMES:
        if isinstance(value.get(key), str) and value[key].strip():
            name = value[key]
            break
    for key in _DATA:
        if has_image(value.get(key)) and (data := _data(value[key], key)) is not None:
            return ImageBytes(data, name)
    nested = [_value(value[key], depth + 1) for key in _NESTED if has_image(value.get(key))]
    if name:
        nested.append(_of_text(name))
    for kind in (ImageBytes, ImageName, ImageAddress):
        for found in nested:
            if isinstance(found, kind):
                return found
    members = ", ".join(f"{key!s:.20}" for key in list(value)[:8])
    raise _bad(f"an object with the members {members or '(none)'} gives no image: expected bytes, path, url or base64")


def _data(value: Any, member: str) -> bytes | None:
    """The bytes that a member of an object holds; None if it is an object of another meaning."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, str):
        found = _data_url(value)
        return found.data if found else _decoded(value, f"{member!r}")
    if _are_bytes(value):
        return bytes(value)
    if isinstance(value, dict) and _are_bytes(value.get("data")):
        return bytes(value["data"])  # as JavaScript writes a Buffer
    if member == "data":
        return None
    raise _bad(f"{member!r} of an image is {_shown(value)}: expected bytes or base64")


def _are_bytes(value: Any) -> bool:
    """Whether a value is a list of the numbers of an image's bytes."""
    if not isinstance(value, list | tuple) or len(value) < _SHORTEST_BASE64 // 2:
        return False
    return _in_range(value[:_SIGNATURE_CHARACTERS]) and is_image_data(bytes(value[:32])) and _in_range(value)


def _in_range(numbers: Iterable[Any]) -> bool:
    return all(type(each) is int and 0 <= each < 256 for each in numbers)


def _of_text(text: str) -> ImageValue:
    if len(text) < _SHORTEST_BASE64 and ":" not in text:
        return ImageName(_named(text))
    if found := _data_url(text):
        return found
    if match := _SCHEME.match(text):
        if match[0].lower() == "file://":
            # file:///a/b and file://localhost/a/b have a host, which is empty or this machine.
            return ImageName(_named(re.sub(r"\Alocalhost(?=/)", "", text[match.end() :])))
        return ImageAddress(text.strip())
    if (data := _bare_base64(text)) is not None:
        return ImageBytes(data)
    return ImageName(_named(text))


def _named(name: str) -> str:
    if not name.strip():
        raise _bad("the name of an image is empty")
    if "\0" in name or len(name) > _LONGEST_PATH:
        raise _bad(f"{_shown(name)} is neither a path nor base64 of an image")
    return name


def _data_url(text: str) -> ImageBytes | None:
    """The image of a data URL (RFC 2397); None if the text is no data URL."""
    match = _DATA_URL.match(text)
    if match is None:
        return None
    media_type, *parameters = (part.strip().lower() for part in unquote(match[1]).split(";"))
    if media_type.startswith(_NOT_RASTER):
        raise _bad("a data URL of SVG, which is a drawing and not pixels: save it as PNG")
    if not media_type.startswith("image/") and media_type not in _OF_ANY_FILE:
        raise _bad(f"a data URL of type {media_type:.40}, not of an image")
    content = text[match.end() :]
    if "base64" in parameters:
        data = _decoded(unquote(content) if "%" in content else content, "a data URL")
    else:
        data = _not_empty(unquote_to_bytes(content))
    if not media_type.startswith("image/") and not is_image_data(data[:32]):
        raise _bad(f"a data URL without a type of image whose {len(data)} bytes are not an image")
    return ImageBytes(data)


def _bare_base64(text: str) -> bytes | None:
    """The bytes of a text that is base64 of an image; None if it may be a path.

    A path with an extension has a dot, which base64 does not; one without is not the base64 of an image's header.

    Raises:
        RowError: bad_image (longer than any path, and not base64 of an image).
    """
    if len(text) < _SHORTEST_BASE64:
        return None
    beginning = "".join(text[: 2 * _SIGNATURE_CHARACTERS].split())[:_SIGNATURE_CHARACTERS]
    looks_like = _BASE64.fullmatch(beginning) is not None and is_image_data(_prefix(beginning))
    if not looks_like and len(text) <= _LONGEST_PATH:
        return None
    if _BASE64.fullmatch(text) is None:
        if len(text) <= _LONGEST_PATH:
            return None
        raise _bad(f"{_shown(text)} is neither a path nor base64 of an image")
    if not looks_like:
        raise _bad(f"{_shown(text)}: base64 of something that is not an image")
    data = _decoded(text, "base64")
    # The first bytes of a JPEG are "/9j/" in base64, with which a path may begin.
    return data if len(text) > _LONGEST_PATH or _has_header(data) else None


def _has_header(data: bytes) -> bool:
    try:
        open_image(data).close()
    except UnreadableImageError:
        return False
    return True


def _prefix(text: str) -> bytes:
    """The bytes of the beginning of a base64 text, from whole groups of four characters."""
    return pybase64.b64decode(text[: len(text) // 4 * 4].replace("-", "+").replace("_", "/").replace("=", "A"))


def _decoded(text: str, what: str) -> bytes:
    """The bytes of base64, also of its URL-safe alphabet, wrapped in lines, or without padding.

    Raises:
        RowError: bad_image.
    """
    try:
        encoded = text.encode("ascii")
    except UnicodeEncodeError:
        raise _bad(f"{what} of {len(text)} characters contains some that are not base64") from None
    if _SPACE.search(encoded):
        encoded = _SPACE.sub(b"", encoded)
    if b"-" in encoded or b"_" in encoded:
        encoded = encoded.replace(b"-", b"+").replace(b"_", b"/")
    encoded += b"=" * (-len(encoded) % 4)
    try:
        return _not_empty(pybase64.b64decode(encoded, validate=True))
    except ValueError:
        raise _bad(f"{what} of {len(text)} characters is not valid base64: damaged or cut off") from None


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise _bad("an image of zero bytes")
    return data


def _bad(detail: str) -> RowError:
    return RowError("bad_image", detail)


def _shown(value: Any) -> str:
    """A value in an example; a long text, which may be base64, only by its length."""
    if isinstance(value, str) and len(value) > _LONGEST_PATH:
        return f"a text of {len(value)} characters"
    if isinstance(value, str | int | float | bool | None):
        return f"{value!r:.60}"
    return f"a value of type {type(value).__name__}"
