"""The content of a turn of own data: a text, a list of parts with texts and images, or one part.

A part says by its `type` what it is, or, as in Gemini's and Qwen's files, only by its members. A part that shows an
image may hold it, may name its number among the images that the row lists (`index`), or may leave it to their order.
"""

from typing import Any

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import ShownImage
from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.image_values import image_value
from scripts.adapters.own.listed_images import ListedImages
from scripts.adapters.own.text_markers import PLACEHOLDER, Part, TextSplitter, joined
from scripts.adapters.own.values import has_value, one_line, shown
from scripts.adapters.raw import Note
from scripts.config.custom import ColumnsConfig

_PART = FORMS.part
_TEXTS, _IMAGES = frozenset(_PART.text_members), frozenset(_PART.image_members)
_OF_PARTS = _TEXTS | _IMAGES | {"type"}
_REFUSED = (
    (frozenset(_PART.media), frozenset(_PART.media_members), "unsupported_media"),
    (frozenset(_PART.tools), frozenset(_PART.tool_members), "unsupported_tool_calls"),
)
_INDEX = "index"


class PartReader:
    """Reads the contents of turns; one per dataset."""

    def __init__(self, columns: ColumnsConfig) -> None:
        """Read with the placeholder that `columns` names, or `<image>`; members that it ignores are not counted."""
        self.splitter = TextSplitter(columns.image_tag or PLACEHOLDER)
        self._ignore = frozenset(columns.ignore)

    def parts(self, content: Any, images: ListedImages, notes: list[Note]) -> list[Part]:
        """The texts and places of images of a content, in their order; no two texts are next to each other.

        Args:
            content: of a turn.
            images: that the row lists.
            notes: members that are ignored are appended.

        Raises:
            RowError: bad_row, bad_image, image_count, unsupported_media, unsupported_tool_calls, reserved_text,
                invalid_utf8.
        """
        if type(content) is str:
            return self.splitter.split(content, images.named)
        if isinstance(content, dict) and not _OF_PARTS.isdisjoint(content):
            content = [content]
        if not isinstance(content, list | tuple):
            raise RowError("bad_row", f"the content is {shown(content)}, not a text or a list of parts")
        pieces: list[Part] = []
        for part in content:
            read = self._part(part, images, notes)
            # Two texts next to each other are two paragraphs.
            if read and pieces and isinstance(read[0], str) and isinstance(pieces[-1], str):
                pieces.append("\n")
            pieces += read
        return joined(pieces)

    def _part(self, part: Any, images: ListedImages, notes: list[Note]) -> list[Part]:
        if isinstance(part, str):
            return self.splitter.split(part, images.named)
        if not isinstance(part, dict):
            raise RowError("bad_row", f"a part is {shown(part)}, not an object or a text")
        members = {name: value for name, value in part.items() if has_value(value)}
        kind = members.pop("type", None)
        if _is_image(kind, members):
            read = _IMAGES.intersection(members) | {_INDEX}
            result: list[Part] = [_image(members, images)]
        else:
            read = _TEXTS.intersection(members)
            text = next((members[name] for name in _PART.text_members if name in members), part.get("text"))
            if not isinstance(text, str):
                raise RowError("bad_row", f"a part of type 'text' has the text {shown(text)}")
            result = self.splitter.split(text, images.named)
        if not read.issuperset(members):
            others = [
                name for name in members if name not in read and self._ignore.isdisjoint((name, f"content.{name}"))
            ]
            notes += [Note(f"ignored:content.{name!s:.60}", "") for name in others]
        return result


def _is_image(kind: Any, members: dict[str, Any]) -> bool:
    """Whether a part is an image; else it is a text.

    Raises:
        RowError: it is neither, or both.
    """
    for kinds, names, reason in _REFUSED:
        if (isinstance(kind, str) and kind in kinds) or (kind is None and not names.isdisjoint(members)):
            what = kind or min(names.intersection(members))
            raise RowError(reason, f"a part is of type {what!r:.40}; texts and images are trained on")
    has_text, has_image = not _TEXTS.isdisjoint(members), not _IMAGES.isdisjoint(members)
    if kind is None:
        is_image = has_image
    elif isinstance(kind, str) and kind in (*_PART.text, *_PART.image):
        is_image = kind in _PART.image
    else:
        known = ", ".join((*_PART.text, *_PART.image))
        raise RowError("bad_row", f"a part is of type {shown(kind)}; known are {known}")
    if (has_text and has_image) or (kind is None and not has_text and not has_image):
        listed = one_line(", ".join(map(str, members)), 60) or "none"
        raise RowError("bad_row", f"a part should be a text or an image, its members are {listed}")
    return is_image


def _image(members: dict[str, Any], images: ListedImages) -> ShownImage:
    """The place of an image, with the image if the part gives it."""
    values = {name: value for name, value in members.items() if name in _IMAGES}
    if len(values) == 1 and "data" not in values:
        return ShownImage(image_value(next(iter(values.values()))))
    if values:
        return ShownImage(image_value(values))
    index = members.get(_INDEX)
    if index is None:
        return ShownImage()
    if type(index) is not int or not 0 <= index < len(images.listed):
        raise RowError("image_count", f"a part shows the image {shown(index)} of {len(images.listed)}, from 0")
    return ShownImage(images.listed[index])
