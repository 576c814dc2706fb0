"""The images that a row of own data lists beside its turns: under which members they are, and which of these count."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from scripts.adapters.base import RowError
from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.image_values import ImageValue, image_value
from scripts.adapters.own.values import as_list, has_value
from scripts.media.keys import IMAGE_EXTENSIONS

_NAMES_ONLY = frozenset(FORMS.row.names_only)
_RANKS = {name: rank for rank, names in enumerate(FORMS.row.images) for name in names}
_OF_FORMS = frozenset(FORMS.row.id).union(*(form.turns + form.question + form.answer for form in FORMS.forms))
_NUMBERED_RANK = len(FORMS.row.images)
_BYTES_RANK = _NUMBERED_RANK + 1
_NAMES_RANK = _NUMBERED_RANK + 2
_NUMBERED = re.compile(r"(?:image|img)[_-]?(\d{1,3})")
_ENDINGS = "|".join(extension.removeprefix(".") for extension in sorted(IMAGE_EXTENSIONS))
_EXTENSION = re.compile(rf"(?:.*\.)?(?:{_ENDINGS})", re.IGNORECASE)
_FILE_NAME = re.compile(rf".+\.(?:{_ENDINGS})", re.IGNORECASE)
_MARKER = re.compile(r"<[^<>]{1,60}>")


class ListedImages(NamedTuple):
    """Images of a row.

    Attributes:
        listed: in their order.
        named: by the marker that stands for each in the texts.
        members: of the row from which they are.
    """

    listed: tuple[ImageValue, ...] = ()
    named: Mapping[str, ImageValue] = {}
    members: Collection[str] = ()


NO_IMAGES = ListedImages()


def rank_of(name: str, value: Any) -> int | None:
    """The rank of a member that holds images, or None; of several ranks in a row the lowest counts."""
    if name in _RANKS:
        return _RANKS[name]
    if name in _NAMES_ONLY:
        return _NAMES_RANK if _names_images(value) else None
    if name.startswith("im") and _NUMBERED.fullmatch(name):
        return _NUMBERED_RANK
    return _BYTES_RANK if isinstance(value, bytes) and _EXTENSION.fullmatch(name) else None


def _names_images(value: Any) -> bool:
    values = value if isinstance(value, list) and value else [value]
    return all(isinstance(each, str) and _FILE_NAME.fullmatch(each) is not None for each in values)


def looks_like_image(value: Any) -> bool:
    """Whether a value of an unknown member seems to be an image or images: bytes, or the names of image files."""
    value = value[0] if isinstance(value, list) and value else value
    if isinstance(value, dict):
        return any(isinstance(each, bytes) or _names_images(each) for each in value.values())
    return isinstance(value, bytes) or _names_images(value)


def listed_images(values: Mapping[str, Any], member: str | None) -> ListedImages:
    """The images that a row lists.

    Args:
        values: of the row's members that have one.
        member: the only member to use; None: the usual ones.

    Raises:
        RowError: ambiguous_images (two members have different images), bad_image.
    """
    if member is not None:
        return _images(values[member], member) if member in values else NO_IMAGES
    ranked = [
        (rank, name)
        for name, value in values.items()
        if name not in _OF_FORMS and (rank := rank_of(name, value)) is not None
    ]
    if not ranked:
        return NO_IMAGES
    if len(ranked) == 1:
        return _images(values[ranked[0][1]], ranked[0][1])
    best = min(rank for rank, _ in ranked)
    names = [name for rank, name in ranked if rank == best]
    if best in (_NUMBERED_RANK, _BYTES_RANK):
        names.sort(key=_natural)
        return ListedImages(tuple(each for name in names for each in _images(values[name], name).listed), {}, names)
    first, *others = [_images(values[name], name) for name in names]
    if any(other[:2] != first[:2] for other in others):
        raise RowError(
            "ambiguous_images",
            f"{' and '.join(names)} have different images: choose with `columns: {{images: {names[0]}}}`",
        )
    numbered = sorted((name for rank, name in ranked if rank == _NUMBERED_RANK), key=_natural)
    return _with_numbered(ListedImages(first.listed, first.named, names), values, numbered)


def _with_numbered(images: ListedImages, values: Mapping[str, Any], numbered: list[str]) -> ListedImages:
    """`images`, and those of the members `image2`, `image3`, ... after them.

    Raises:
        RowError: ambiguous_images (members of other numbers have other images).
    """
    further = [each for name in numbered for each in _images(values[name], name).listed]
    members = [*images.members, *numbered]
    if all(each in images.listed for each in further):
        return images._replace(members=members)
    if len(images.listed) == 1 and numbered[0].rstrip("0123456789") + "2" == numbered[0]:
        return ListedImages((*images.listed, *further), images.named, members)
    raise RowError(
        "ambiguous_images",
        f"{' and '.join(members[:4])} have different images: choose with `columns: {{images: {members[0]}}}`",
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def _images(value: Any, member: str) -> ListedImages:
    if type(value) is str and value[:1] != "[":
        return ListedImages((image_value(value),), {}, (member,))
    if type(value) is dict and type(value.get("bytes")) is bytes and value["bytes"]:
        # As `datasets` stores an image.
        return ListedImages((image_value(value),), {}, (member,))
    value = as_list(value)
    if isinstance(value, dict) and value and all(isinstance(key, str) and _MARKER.fullmatch(key) for key in value):
        named = {key: image_value(each) for key, each in value.items() if not _is_empty(each)}
        return ListedImages((), named, (member,))
    # A list of numbers is one image: its bytes.
    values = value if isinstance(value, list | tuple) and value and type(value[0]) is not int else [value]
    return ListedImages(tuple(image_value(each) for each in values if not _is_empty(each)), {}, (member,))


def _is_empty(value: Any) -> bool:
    """Whether an item is no image: null, "", or an object of such members, as tables hold a missing image."""
    if isinstance(value, dict):
        return not any(map(has_value, value.values()))
    return value is None or value == ""
