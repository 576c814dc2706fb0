"""The images that a row of own data lists beside its turns: under which members they are, and which of these count."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from scripts.adapters.base import RowError
from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.image_values import ImageValue, image_value
from scripts.adapters.own.values import as_list

_GROUPS = {name: number for number, names in enumerate(FORMS.row.images) for name in names}
_NAMES_ONLY = frozenset(FORMS.row.names_only)
_NUMBERED = re.compile(r"(?:image|img)[_-]?(\d{1,3})")
_EXTENSION = re.compile(rf"(?:.*\.)?(?:{'|'.join(FORMS.image_extensions)})", re.IGNORECASE)
_FILE_NAME = re.compile(rf".+\.(?:{'|'.join(FORMS.image_extensions)})", re.IGNORECASE)
_MARKER = re.compile(r"<[^<>]{1,60}>")
_NUMBERED_GROUP = len(FORMS.row.images)
_BYTES_GROUP = _NUMBERED_GROUP + 1
_NAMES_GROUP = _NUMBERED_GROUP + 2


class ListedImages(NamedTuple):
    """`listed` in their order, `named` by the marker that stands for each in the texts, and the members they are from."""

    listed: tuple[ImageValue, ...]
    named: Mapping[str, ImageValue]
    members: Collection[str]


_NONE = ListedImages((), {}, ())


def group_of(name: str, value: Any) -> int | None:
    """The rank of a member that holds images, if it does; of several ranks in a row the lowest counts."""
    if name in _GROUPS:
        return _GROUPS[name]
    if name in _NAMES_ONLY:
        return _NAMES_GROUP if _names_image(value) else None
    if _NUMBERED.fullmatch(name):
        return _NUMBERED_GROUP
    return _BYTES_GROUP if isinstance(value, bytes) and _EXTENSION.fullmatch(name) else None


def _names_image(value: Any) -> bool:
    values = value if isinstance(value, list) and value else [value]
    return all(isinstance(each, str) and _FILE_NAME.fullmatch(each) is not None for each in values)


def looks_like_image(value: Any) -> bool:
    """Whether a value of an unknown member seems to be an image or images: bytes, or the names of image files."""
    value = value[0] if isinstance(value, list) and value else value
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or _names_image(value.get("path"))
    return isinstance(value, bytes) or _names_image(value)


def listed_images(values: Mapping[str, Any], member: str | None) -> ListedImages:
    """The images that a row lists.

    Args:
        values: of the row's members that have one.
        member: the only member to use; None: the usual ones.

    Raises:
        RowError: ambiguous_images (two members have different images), bad_image.
    """
    if member is not None:
        return _images(values[member], member) if member in values else _NONE
    ranked: dict[int, list[str]] = {}
    for name, value in values.items():
        if (group := group_of(name, value)) is not None:
            ranked.setdefault(group, []).append(name)
    if not ranked:
        return _NONE
    best = min(ranked)
    names = ranked[best]
    if best in (_NUMBERED_GROUP, _BYTES_GROUP):
        names = sorted(names, key=_natural)
        found = [each for name in names for each in _images(values[name], name).listed]
        return ListedImages(tuple(found), {}, names)
    first, *others = [_images(values[name], name) for name in names]
    for other in others:
        if other[:2] != first[:2]:
            raise RowError(
                "ambiguous_images",
                f"{' and '.join(names)} have different images: choose with `columns: {{images: {names[0]}}}`",
            )
    return ListedImages(first.listed, first.named, names)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def _images(value: Any, member: str) -> ListedImages:
    value = as_list(value)
    if isinstance(value, dict) and value and all(map(_is_marker, value)):
        named = {name: image_value(each) for name, each in value.items() if each is not None}
        return ListedImages((), named, (member,))
    values = value if isinstance(value, list | tuple) and not _are_numbers(value) else [value]
    return ListedImages(tuple(map(image_value, values)), {}, (member,))


def _is_marker(name: Any) -> bool:
    return isinstance(name, str) and _MARKER.fullmatch(name) is not None


def _are_numbers(value: Any) -> bool:
    return bool(value) and type(value[0]) is int
