r"""The parts of a question: texts and images in the order in which they were written.

With `images: inline` a template keeps that order. With `images: before` the images come before the question, and
`text_with_names` writes what is left: an image that its writer only showed ("What is it? <image>") needs no word there,
but one inside a sentence ("Which is newer, <image> or <image>?") does, and becomes its name, "image 1".

Pure Python: the data programs count tokens with it, and they never import torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# The escapes are the wide forms of Chinese and Japanese, and typographic quotation marks.
_CLOSING = r"'\"\u2019\u201d\u00bb)\]\uff09\u300d\u300f\u3011"
# A colon is not among them: "Before: <image>" is a label, and the image belongs to it.
_SENTENCE_END = re.compile(rf"[.?!\u2026\u3002\uff1f\uff01][{_CLOSING}]*\s*")
_LIST_LABEL = re.compile(r"\s*\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})[.)]\s*")
_GOES_ON = re.compile(
    r"\s*[,:;.?!\u2026)\]}\uff0c\uff1a\uff1b\u3001\u3002\uff1f\uff01\uff09\u300d\u300f\u3011]|['\u2019]s\b"
)


def join_texts(parts: Sequence[str | int]) -> list[str | int]:
    """The same parts with neighbouring texts joined by a newline, and without empty texts; images are numbers."""
    joined: list[str | int] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += f"\n{part}" if part else ""
        elif part != "":
            joined.append(part)
    return joined


def text_with_names(parts: Sequence[str | int]) -> str:
    r"""The text of a question whose images are shown before it; `parts` are its texts and the numbers of its images.

    Images before all texts are only shown, and the text stays as it is. Otherwise every line is judged by itself, where
    a *run* is one image or several with nothing but blanks between them:

        a line of images alone                                             shown, and the line disappears
        a run at the beginning, followed by text and no other image        shown
        the same, but the text goes on with a comma, a colon, "'s" ...     named, if a text comes before the run
        a run at the end, behind the end of a sentence ("What is it?")     shown
        all other images                                                   named: "image 1"

    An empty first text marks the beginning of a question that begins with an image: images before it are only shown,
    and those behind it come after a text. So `["", 1, ": what is it?"]` gives "image 1: what is it?", while
    `[1, ": what is it?"]` gives ": what is it?". Blanks that an image leaves behind at the edge of a line go, and a
    blank is put between a name and a letter or digit beside it.
    """
    first_text = next((place for place, part in enumerate(parts) if isinstance(part, str)), len(parts))
    if not any(isinstance(part, int) for part in parts[first_text:]):
        return "\n".join(part for part in parts if isinstance(part, str) and part)
    marked = parts[first_text] == ""
    body = join_texts(parts[first_text:] if marked else parts)
    kept: list[str] = []
    removed = False
    for number, line in enumerate(_lines(body)):
        text = _line_text(line, behind_text=marked or number > 0)
        if text is None:
            removed = True
        elif removed and not text.strip() and not (kept and kept[-1].strip()):
            continue  # of the blank lines around a line that disappears, one side is enough
        else:
            kept.append(text)
            removed = removed and not text.strip()
    text = "\n".join(kept)
    return text.rstrip() if removed else text


def _lines(parts: Sequence[str | int]) -> list[list[str | int]]:
    """The parts divided at line ends, without empty texts."""
    lines: list[list[str | int]] = [[]]
    for part in parts:
        if isinstance(part, int):
            lines[-1].append(part)
            continue
        first, *others = part.split("\n")
        lines[-1] += [first] if first else []
        lines += [[text] if text else [] for text in others]
    return lines


def _line_text(line: Sequence[str | int], behind_text: bool) -> str | None:
    """A line with names in place of the images inside its sentences, or None if it holds nothing but images.

    `behind_text`: whether a text comes before an image at its beginning.
    """
    texts = [place for place, part in enumerate(line) if isinstance(part, str) and part.strip()]
    if not any(isinstance(part, int) for part in line):
        return "".join(map(str, line))
    if not texts:
        return None
    first, last = texts[0], texts[-1]
    leading, middle, trailing = list(line[:first]), list(line[first : last + 1]), list(line[last + 1 :])
    begins, ends = _has_image(leading), _has_image(trailing)
    if begins and not (_has_image(middle) or ends or (behind_text and _GOES_ON.match(str(middle[0])))):
        leading, middle[0] = [], str(middle[0]).lstrip()
    if ends and _ends_a_sentence(str(middle[-1])) and not (first == last and _LIST_LABEL.fullmatch(str(middle[-1]))):
        trailing, middle[-1] = [], str(middle[-1]).rstrip()
    return _written(leading + middle + trailing)


def _has_image(parts: Sequence[str | int]) -> bool:
    return any(isinstance(part, int) for part in parts)


def _ends_a_sentence(text: str) -> bool:
    return any(end.end() == len(text) for end in _SENTENCE_END.finditer(text))


def _written(parts: Sequence[str | int]) -> str:
    """Texts, and names in place of images, with a blank where a name would run into a letter or digit."""
    text, after_image = "", False
    for part in parts:
        piece = part if isinstance(part, str) else f"image {part}"
        at_a_name = after_image or isinstance(part, int)
        text += " " if at_a_name and text[-1:].isalnum() and piece[:1].isalnum() else ""
        text, after_image = text + piece, isinstance(part, int)
    return text
