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
    """`images` are paths; `parts` is the question: its texts and, as indices of `images`, the images within it."""

    images: tuple[str, ...]
    parts: tuple[str | int, ...]


def parse_line(line: str) -> InputLine:
    """Split a line into images and question.

    A path before the question is removed from it. A path within the question stands for its image: "Is cat.jpg a cat?"
    has the parts "Is ", 0 and " a cat?".
    """
    images: list[str] = []
    parts: list[str | int] = []
    end = 0
    for word in _WORD.finditer(line):
        path = _path(word)
        if path is None:
            continue
        between = line[end : word.start()]
        if parts or between.strip():
            parts += [between if parts else between.lstrip(), len(images)]
        images.append(path)
        end = word.end()
    parts.append(line[end:].rstrip() if parts else line[end:].strip())
    return InputLine(tuple(images), tuple(part for part in parts if part != ""))


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
