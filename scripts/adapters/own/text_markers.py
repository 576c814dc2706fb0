"""Texts of own data split at the places of images, and refused where they hold other markers of media.

A placeholder (`<image>`, or `columns.image_tag`) shows the next image that the row lists. `<img>path</img>` is
Qwen-VL's way to show the image at a path, and MiniCPM's rows have a marker of their own for each image. Other markers,
such as `<video>` or `<|image_pad|>`, mean media that would be trained on as literal text; forms.yaml lists them.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import groupby

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import ShownImage
from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.image_values import ImageValue, image_value
from scripts.adapters.own.values import checked_text

PLACEHOLDER = "<image>"
_PATH = r"<img>(?P<path>[^<>\n]{1,2000})</img>"
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_LONGEST_ELEMENT = 5000
"""Characters around a marker in which code and the end of an element are looked for."""
_IS_WORD = re.compile(r"[`'\"]?\s*(?:tag|element|attribute)s?\b", re.IGNORECASE)
_ELEMENTS = frozenset(marker.text for marker in FORMS.markers if marker.html)

Part = str | ShownImage


class TextSplitter:
    """Splits texts at their placeholders."""

    def __init__(self, tag: str = PLACEHOLDER) -> None:
        """Split at `tag`; if it is another one, `<image>` is a marker that is not understood."""
        self._tag = tag
        markers = [marker.regex for marker in FORMS.markers if marker.text != tag]
        markers += [re.escape(PLACEHOLDER)] if tag != PLACEHOLDER else []
        self._regex = re.compile(f"(?P<tag>{re.escape(tag)})|{_PATH}|(?P<marker>{'|'.join(markers)})")

    def split(self, text: str, named: Mapping[str, ImageValue] | None = None) -> list[Part]:
        """The texts and places of images of `text`, in their order; the texts as they are, empty ones left out.

        Args:
            text: of a turn.
            named: images of the row by the marker that stands for each.

        Raises:
            RowError: unsupported_media (a marker of other media), reserved_text, invalid_utf8, bad_image.
        """
        checked_text(text)
        if not named:
            return self._split(text)
        parts: list[Part] = []
        for piece in re.split(f"({'|'.join(sorted(map(re.escape, named), key=len, reverse=True))})", text):
            parts += [ShownImage(named[piece])] if piece in named else self._split(piece)
        return parts

    def _split(self, text: str) -> list[Part]:
        # Most texts have no other marker, and this is faster than the expression.
        pieces = text.split(self._tag)
        for piece in pieces:
            if "<" in piece or "[" in piece:
                break
        else:
            return _with_places(pieces)
        parts: list[Part] = []
        begin = 0
        for match in self._regex.finditer(text):
            if match.lastgroup == "marker":
                self._check_marker(text, match)
                continue
            if match.start() > begin:
                parts.append(text[begin : match.start()])
            begin = match.end()
            path = match["path"]
            parts.append(ShownImage() if path is None else ShownImage(image_value(path.strip())))
        if begin < len(text):
            parts.append(text[begin:])
        return parts

    def _check_marker(self, text: str, match: re.Match[str]) -> None:
        """Raise RowError unless the marker is an element of HTML in a text about HTML."""
        marker = match[0]
        if marker in _ELEMENTS and _is_html(text, match):
            return
        numbered = any(character.isdigit() for character in marker)
        way_out = "" if numbered else f', or set `columns: {{image_tag: "{marker}"}}` if it shows an image'
        raise RowError(
            "unsupported_media", f"the text contains {marker}: write {self._tag} where an image stands{way_out}"
        )


def _with_places(pieces: list[str]) -> list[Part]:
    """`pieces` with the place of an image between each two, without empty texts."""
    parts: list[Part] = [pieces[0]] if pieces[0] else []
    for piece in pieces[1:]:
        parts.append(ShownImage())
        if piece:
            parts.append(piece)
    return parts


def joined(parts: Iterable[Part]) -> list[Part]:
    """`parts` with texts that are next to each other made one."""
    result: list[Part] = []
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        if is_text:
            result.append("".join(part for part in group if isinstance(part, str)))
        else:
            result += group
    return result


def _is_html(text: str, match: re.Match[str]) -> bool:
    """Whether an element's start tag is code, is named in a sentence, or has other elements inside."""
    if _IS_WORD.match(text, match.end()):
        return True
    before = text[max(0, match.start() - _LONGEST_ELEMENT) : match.end() + _LONGEST_ELEMENT]
    at = min(match.start(), _LONGEST_ELEMENT)
    if any(code.start() <= at < code.end() for code in _CODE.finditer(before)):
        return True
    end = text.find(f"</{match[0][1:]}", match.end(), match.end() + _LONGEST_ELEMENT)
    return end >= 0 and "<" in text[match.end() : end]
