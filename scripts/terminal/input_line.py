r"""Parses a typed line into image paths and a question.

Terminals insert a dropped file as its path in different forms: 'my cat.jpg' or "my cat.jpg" in quotes, my\ cat.jpg with
escaped spaces, or file:///home/me/my%20cat.jpg. A word of the line is an image if it has the suffix of an image or is a
file:// URL, or if it looks like a path and the file exists. So a mistyped path of an image is an error and does not
silently become part of the question, while apostrophes, slashes and full stops in a question are left as they are.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scripts.common.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
# A word in quotes, which must end at the closing quote, or one without quotes whose spaces are escaped.
_WORD = re.compile(r"""(?<!\S)(?:'(?P<single>[^']+)'|"(?P<double>[^"]+)"|(?P<plain>(?:\\.|[^\s\\])+))(?=\s|$)""")


@dataclass(frozen=True)
class InputLine:
    """`images` are paths; in `text`, the question, every path after its first word is replaced by "image N"."""

    images: tuple[str, ...]
    text: str


def parse_line(line: str, first: int) -> InputLine:
    """Split a line into images and question; `first` is the number of the next image of the conversation.

    A path before the question is removed from it. A path within the question is replaced by the image's name: "Is
    cat.jpg a cat?" becomes "Is image 1 a cat?".
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


def parse_paths(text: str) -> list[str]:
    """Split a text that holds only paths.

    Raises:
        UserError: a quote is not closed.
    """
    words = list(_WORD.finditer(text))
    if any(word["plain"] and word["plain"][0] in "'\"" for word in words):
        raise UserError(f'a quote is not closed in {text!r}; write a path with spaces as "my image.jpg"')
    return [_unescaped(word) for word in words]


def _path(word: re.Match) -> str | None:
    """The path that a word of a question is, `None` if it is not an image."""
    path = _unescaped(word)
    if word["plain"] and word["plain"].startswith("file://"):
        return path
    if path.lower().endswith(IMAGE_SUFFIXES):
        return path
    like_path = path.startswith(("/", "~/", "./", "../")) and len(path) > 3
    try:
        return path if like_path and Path(path).expanduser().is_file() else None
    except (OSError, ValueError, RuntimeError):  # for instance too long for a file name
        return None


def _unescaped(word: re.Match) -> str:
    """A word without quotes and escapes; a file:// URL as its path."""
    text = word["single"] or word["double"] or re.sub(r"\\(.)", r"\1", word["plain"])
    return unquote(urlsplit(text).path) if text.startswith("file://") else text
