r"""A line that a person typed: which images it brings, and what it asks.

Terminals write a dropped file as its path, each in its own way: 'my cat.jpg' or "my cat.jpg" in quotes, my\ cat.jpg
with the spaces escaped, or file:///home/me/my%20cat.jpg. A word of a line is taken for an image if it is a file, or is
written like one: with the ending of an image, or as an address. So a mistyped path is an error and never silently a
part of the question, while an apostrophe, a slash or a full stop remain what they are.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scripts.common.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
# A word in quotes, which must end where the word ends, or one whose spaces are escaped.
_WORD = re.compile(r"""(?<!\S)(?:'(?P<single>[^']+)'|"(?P<double>[^"]+)"|(?P<plain>(?:\\.|[^\s\\])+))(?=\s|$)""")


@dataclass(frozen=True)
class InputLine:
    """`images` are paths; `text` is the question, in which an image within the words is named by its number."""

    images: tuple[str, ...]
    text: str


def read_line(line: str, first: int) -> InputLine:
    """Tell images and question apart; the next image of the conversation has the number `first`.

    An image before the question is just shown. One within the words is named there: "Is cat.jpg a cat?" asks
    "Is image 1 a cat?".
    """
    images: list[str] = []
    text, end = "", 0
    for word in _WORD.finditer(line):
        path = _path(word)
        if path is None:
            continue
        between = line[end : word.start()]
        text += between if text.strip() else between.lstrip()
        images.append(path)
        if text.strip():
            text += f"image {first + len(images) - 1}"
        end = word.end()
    return InputLine(tuple(images), (text + (line[end:] if text.strip() else line[end:].lstrip())).strip())


def read_paths(text: str) -> list[str]:
    """The paths in a text that holds nothing else.

    Raises:
        UserError: a quote is not closed.
    """
    words = list(_WORD.finditer(text))
    if any(word["plain"] and word["plain"][0] in "'\"" for word in words):
        raise UserError(f'a quote is not closed in {text!r}; write a path with spaces as "my image.jpg"')
    return [_written(word) for word in words]


def _path(word: re.Match) -> str | None:
    """The path that a word of a question stands for, None if it is no image."""
    path = _written(word)
    if word["plain"] and word["plain"].startswith("file://"):
        return path
    if path.lower().endswith(ENDINGS):
        return path
    looks = path.startswith(("/", "~/", "./", "../")) and len(path) > 3
    try:
        return path if looks and Path(path).expanduser().is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long for a name, for instance
        return None


def _written(word: re.Match) -> str:
    """A word without quotes and escapes; an address as the path it names."""
    text = word["single"] or word["double"] or re.sub(r"\\(.)", r"\1", word["plain"])
    return unquote(urlsplit(text).path) if text.startswith("file://") else text
