"""Texts of own data split at the places of images, and refused where they hold other markers of media.

A placeholder (`<image>`, or `columns.image_tag`) shows the next image that the row lists. `<img>path</img>` is
Qwen-VL's way to show the image at a path, and MiniCPM's rows have a marker of their own for each image. Other markers,
such as `<video>` or `<|image_pad|>`, mean media that would be trained on as literal text; forms.yaml lists them.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import groupby

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import ShownImage
from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.image_values import ImageValue, image_value
from scripts.adapters.own.values import checked_text, is_utf8

PLACEHOLDER = "<image>"
_PATH = r"<img>(?P<path>[^<>\n]{1,2000})</img>"
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_LONGEST_ELEMENT = 5000
"""Characters after a marker in which the end of its element is looked for."""
_IS_WORD = re.compile(r"[`'\"]?\s*(?:tag|element|attribute)s?\b", re.IGNORECASE)
_PLACEHOLDERS = frozenset(marker.text for marker in FORMS.markers if marker.image)
_LIKELY = re.compile(FORMS.likely_placeholder)
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

    def is_plain(self, text: str) -> bool:
        """Whether a text has neither places of images nor anything to refuse; False also for some that have neither."""
        # Slots of records, markers of the table or of single images, and likely placeholders have one of these.
        if "<" in text or "[" in text or "{" in text or ";base64," in text or self._tag in text:
            return False
        return text.isascii() or is_utf8(text)

    def split(self, text: str, named: Mapping[str, ImageValue] | None = None) -> list[Part]:
        """The texts and places of images of `text`, in their order; the texts as they are, empty ones left out.

        Args:
            text: of a turn.
            named: images of the row by the marker that stands for each.

        Raises:
            RowError: unsupported_media (a marker of other media), reserved_text, invalid_utf8, bad_image.
        """
        if self.is_plain(text):
            return [text] if text else []
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
            if "<" in piece or "[" in piece or ";base64," in piece:
                break
        else:
            return _with_places(pieces)
        parts: list[Part] = []
        begin = 0
        html = _Html(text)
        for match in self._regex.finditer(text):
            if match.lastgroup == "marker":
                if not html.has(match):
                    raise self._unsupported(match[0])
                continue
            if match.start() > begin:
                parts.append(text[begin : match.start()])
            begin = match.end()
            path = match["path"]
            parts.append(ShownImage() if path is None else ShownImage(image_value(path.strip())))
        if begin < len(text):
            parts.append(text[begin:])
        return parts

    def _unsupported(self, marker: str) -> RowError:
        way_out = f"an image stands at {self._tag}"
        if marker in _PLACEHOLDERS:
            way_out += f", or at this with {_tag_line(marker)}"
        return RowError(
            "unsupported_media", f"the text contains {marker:.60}, which is not trained on as text; {way_out}"
        )


def refuse_likely_placeholder(text: str) -> None:
    """Check a question of a row whose images have no place in any text.

    Raises:
        RowError: unsupported_media (it contains what is likely to be meant as such a place).
    """
    if match := _LIKELY.search(text):
        raise RowError(
            "unsupported_media",
            f"the text contains {match[0]}, and the row's images have no other place: an image stands at "
            f"{PLACEHOLDER}, or at this with {_tag_line(match[0])}",
        )


def _tag_line(marker: str) -> str:
    return f'`columns: {{image_tag: "{marker}"}}`'


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


class _Html:
    """Whether markers of a text are elements of HTML in a text about HTML."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._code: list[tuple[int, int]] | None = None

    def has(self, match: re.Match[str]) -> bool:
        """Whether a marker is an element that is named in a sentence, stands in code, or has other elements inside."""
        if match[0] not in _ELEMENTS:
            return False
        if _IS_WORD.match(self._text, match.end()) or self._is_code(match.start()):
            return True
        end = self._text.find(f"</{match[0][1:]}", match.end(), match.end() + _LONGEST_ELEMENT)
        return end >= 0 and "<" in self._text[match.end() : end]

    def _is_code(self, position: int) -> bool:
        if self._code is None:
            self._code = [code.span() for code in _CODE.finditer(self._text)]
        before = bisect_right(self._code, (position, len(self._text)))
        return before > 0 and position < self._code[before - 1][1]
