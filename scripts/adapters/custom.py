r"""custom: conversations that a user provides, in the form of LLaVA and ShareGPT or of the chat libraries.

    {"id": "1", "image": "cat.jpg",
     "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}
    {"images": ["a.jpg", "b.jpg"], "messages": [{"role": "user", "content": "Is <image> like <image>?"}, ...]}
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "..."}]},
                  ...]}

Images are shown with the turn that contains their placeholder or part, in their order; without any placeholder, all
images are shown with the first question. A placeholder at the edge of a turn only shows the image; one inside a
sentence also becomes the name of the image ("image 1"). Rows without images are text-only. A system turn, or a member
"system", replaces the system text of the template.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from scripts.adapters.base import Dropped, RowError, convert_rows, field, safe_path, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import ImageRef, Record, Round

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
}
_PLACEHOLDER = "<image>"
_MAX_IMAGES = 64


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """The conversations of all files of the dataset."""
    (source,) = raw.folders
    manifest = raw.manifest(source)
    roots = {folder: found.get("root", "") for folder, found in manifest["image_sets"].items()}
    for path in manifest["dataset"]["files"]:

        def convert(row: RawRow, path: str = path) -> Iterator[Record | Note]:
            turns, listed = _turns(row.value), _listed(row.value)
            system = _system(row.value, turns)
            turns = [turn for turn in turns if turn.role != "system"]
            if len(turns) % 2:
                yield Note("unanswered_question", f"{path} row {row.id}: the last of {len(turns)} turns is left out")
                turns = turns[:-1]
            names, rounds = _rounds(turns, listed)
            found = tuple(_find(images, source, roots, name) for name in names)
            id_ = _id(row.value, f"{path}-{row.id}")
            yield Record(id_, found, rounds, system=system)

        yield from convert_rows(raw.rows(path), convert, path)


class _Turn(NamedTuple):
    """One turn: its role, its text with placeholders, and the images that its parts name, in their order."""

    role: str
    content: str
    images: list[str]


def _turns(row: Any) -> list[_Turn]:
    """The turns of a row, system texts included.

    Raises:
        RowError: bad_row (no conversation, a turn without role or text, or roles that do not alternate).
    """
    keys = row if isinstance(row, dict) else {}
    name = next((name for name in ("conversations", "messages", "conversation") if name in keys), "messages")
    turns: list[_Turn] = []
    for number, turn in enumerate(field(row, name, list)):
        role = field(turn, "from" if isinstance(turn, dict) and "from" in turn else "role", str)
        if role not in _ROLES:
            raise RowError("bad_row", f"turn {number} is of {role!r:.40}; known are {', '.join(_ROLES)}")
        content = field(turn, "value" if "value" in turn else "content", str, list)
        turns.append(_Turn(_ROLES[role], *(_parts(content, number) if isinstance(content, list) else (content, []))))
    roles = [turn.role for turn in turns if turn.role != "system"]
    for number, role in enumerate(roles):
        if role != ("user", "assistant")[number % 2]:
            raise RowError("bad_row", f"turn {number} is of the {role}, out of turn")
    if len(roles) < 2:
        raise RowError("bad_row", "no answer")
    return turns


def _parts(content: list, turn: int) -> tuple[str, list[str]]:
    """The text of a list of parts, with placeholders, and the images that they name."""
    texts: list[str] = []
    images: list[str] = []
    for part in content:
        kind = field(part, "type", str)
        if kind == "text":
            texts.append(field(part, "text", str))
        elif kind in ("image", "image_url"):
            texts.append(_PLACEHOLDER)
            image = next((part[name] for name in ("image", "path", "url", "image_url") if part.get(name)), None)
            if isinstance(image, dict):
                image = image.get("url")
            if image is not None:
                images.append(_image_path(image))
        else:
            raise RowError("bad_row", f"turn {turn} has a part of type {kind!r:.40}")
    return "\n".join(texts), images


def _id(row: dict, otherwise: str) -> str:
    """The id of a row: a text or a number.

    Raises:
        RowError: bad_row (anything else, NaN or infinity).
    """
    value = row.get("id")
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError("bad_row", f"'id' is not a text or a number but {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError("bad_row", f"'id' is {value}")
    return text(str(value), "'id'")


def _listed(row: dict) -> list[str]:
    """Images that the row lists beside its conversation."""
    value = row.get("images", row.get("image"))
    if value is None:
        return []
    return [_image_path(each) for each in (value if isinstance(value, list) else [value])]


def _image_path(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise RowError("bad_row", f"an image should be named by its path, not by {value!r:.60}")
    return safe_path(value.removeprefix("file://").removeprefix("./"))


def _system(row: dict, turns: list[_Turn]) -> str:
    texts = [turn.content for turn in turns if turn.role == "system"]
    texts += [row["system"]] if isinstance(row.get("system"), str) and row["system"].strip() else []
    if len(texts) > 1:
        raise RowError("bad_row", "more than one system text")
    if texts and _PLACEHOLDER in texts[0]:
        raise RowError("bad_row", "the system text shows an image")
    return text(texts[0], "the system text") if texts and texts[0].strip() else ""


def _rounds(turns: list[_Turn], listed: list[str]) -> tuple[list[str], tuple[Round, ...]]:
    """Paths of the images in the order in which they are shown, and the rounds.

    Raises:
        RowError: image_count (placeholders and images do not match), image_in_answer, empty_text.
    """
    placeholders = [turn.content.count(_PLACEHOLDER) for turn in turns]
    in_parts = [name for turn in turns for name in turn.images]
    if any(placeholders[1::2]):
        raise RowError("image_in_answer", "an answer shows an image, which this model cannot generate")
    names = in_parts or listed
    if in_parts and listed and in_parts != listed:
        raise RowError("image_count", f"the parts name {len(in_parts)} images, the row lists {len(listed)} others")
    if sum(placeholders) not in (len(names), 0) or len(names) > _MAX_IMAGES:
        raise RowError("image_count", f"{sum(placeholders)} placeholders, but {len(names)} images")
    if not sum(placeholders):
        placeholders[0] = len(names)
    shown, rounds = 0, []
    for number in range(0, len(turns), 2):
        question, answer = turns[number].content, turns[number + 1].content
        last = shown + placeholders[number]
        text(question, f"turn {number}")  # refuses slots that the user has written
        with_slots = text(_with_names(question, shown), f"turn {number}", slots=True)
        rounds.append(Round((with_slots,), (text(answer, f"turn {number + 1}"),), tuple(range(shown, last))))
        shown = last
    return names, tuple(rounds)


_EDGE = re.compile(rf"\A(?:\s*{_PLACEHOLDER})+|(?:{_PLACEHOLDER}\s*)+\Z|^[ \t]*{_PLACEHOLDER}[ \t]*$", re.MULTILINE)


def _with_names(question: str, first: int) -> str:
    """`question` without the placeholders at its edges and on separate lines; others become names of images."""
    numbers = iter(range(first, first + question.count(_PLACEHOLDER)))
    edges = [range(*match.span()) for match in _EDGE.finditer(question)]

    def named(match: re.Match[str]) -> str:
        number = next(numbers)
        return "" if any(match.start() in edge for edge in edges) else f"image <|image:{number}|>"

    return re.sub(_PLACEHOLDER, named, question)


def _find(images: ImageLookup, source: str, roots: dict[str, str], name: str) -> ImageRef:
    """The image `name`, which rows may give with or without the folder that contains all of their archive (`roots`)."""
    if not roots:
        raise RowError("missing_image", f"{name}: `custom.{source}` in the configuration has no `images`")
    exact = [folder + name.removeprefix(root) for folder, root in roots.items() if name.startswith(root)]
    return images.find(source, *exact, *(folder + name for folder in roots), name)
