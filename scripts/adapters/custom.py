"""own: conversations of the user's own, in the forms that LLaVA, ShareGPT and the chat libraries write.

    {"id": "1", "image": "cat.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}
    {"images": ["a.jpg", "b.jpg"], "messages": [{"role": "user", "content": "Is <image> like <image>?"}, ...]}
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "..."}]},
                  ...]}

Images are shown with the turn that holds their placeholder or part, in their order; without any placeholder, all with
the first question. A placeholder at the edge of a turn only shows the image; one inside a sentence also stands for its
name ("image 1"). Rows without images are text alone. A system turn, or a member "system", replaces the template's.
"""

import re
from collections.abc import Iterator
from typing import Any

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
    card = raw.card(source)
    folders = list(card["image_sets"])
    for path in card["dataset"]["files"]:

        def convert(row: RawRow, path: str = path) -> Iterator[Record | Note]:
            turns, listed = _turns(row.value), _listed(row.value)
            system = _system(row.value, turns)
            turns = [turn for turn in turns if turn[0] != "system"]
            if len(turns) % 2:
                yield Note("unanswered_question", f"{path} row {row.id}: the last of {len(turns)} turns is left out")
                turns = turns[:-1]
            names, rounds = _rounds(turns, listed)
            found = tuple(_find(images, source, folders, name) for name in names)
            id_ = text(str(row.value.get("id", f"{path}-{row.id}")), "'id'")
            yield Record(id_, found, rounds, system=system)

        yield from convert_rows(raw.rows(path), convert, path)


_Turn = tuple[str, str, list[str]]
"""Role, text with placeholders, and the images that parts of the turn name, in the order of their placeholders."""


def _turns(row: Any) -> list[_Turn]:
    """What is said in a row.

    Raises:
        RowError: bad_row (no conversation, a turn without role or text, or turns not in turn).
    """
    name = next((name for name in ("conversations", "messages", "conversation") if name in (row or {})), "messages")
    turns: list[_Turn] = []
    for place, turn in enumerate(field(row, name, list)):
        said_by = field(turn, "from" if isinstance(turn, dict) and "from" in turn else "role", str)
        if said_by not in _ROLES:
            raise RowError("bad_row", f"turn {place} is of {said_by!r:.40}; known are {', '.join(_ROLES)}")
        content = field(turn, "value" if "value" in turn else "content", str, list)
        said, images = _parts(content, place) if isinstance(content, list) else (content, [])
        turns.append((_ROLES[said_by], said, images))
    spoken = [role for role, _, _ in turns if role != "system"]
    for place, role in enumerate(spoken):
        if role != ("user", "assistant")[place % 2]:
            raise RowError("bad_row", f"turn {place} is of the {role}, out of turn")
    if len(spoken) < 2:
        raise RowError("bad_row", "no answer")
    return turns


def _parts(content: list, place: int) -> tuple[str, list[str]]:
    said, images = [], []
    for part in content:
        kind = field(part, "type", str)
        if kind == "text":
            said.append(field(part, "text", str))
        elif kind in ("image", "image_url"):
            said.append(_PLACEHOLDER)
            named = next((part[name] for name in ("image", "path", "url", "image_url") if part.get(name)), None)
            if isinstance(named, dict):
                named = named.get("url")
            if named is not None:
                images.append(_name(named))
        else:
            raise RowError("bad_row", f"turn {place} has a part of type {kind!r:.40}")
    return "\n".join(said), images


def _listed(row: dict) -> list[str]:
    """Images that the row lists beside its conversation."""
    value = row.get("images", row.get("image"))
    if value is None:
        return []
    return [_name(each) for each in (value if isinstance(value, list) else [value])]


def _name(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise RowError("bad_row", f"an image should be named by its path, not by {value!r:.60}")
    return safe_path(value.removeprefix("file://").removeprefix("./"))


def _system(row: dict, turns: list[_Turn]) -> str:
    said = [content for role, content, _ in turns if role == "system"]
    said += [row["system"]] if isinstance(row.get("system"), str) and row["system"].strip() else []
    if len(said) > 1:
        raise RowError("bad_row", "more than one system text")
    if said and _PLACEHOLDER in said[0]:
        raise RowError("bad_row", "the system text shows an image")
    return text(said[0], "the system text") if said and said[0].strip() else ""


def _rounds(turns: list[_Turn], listed: list[str]) -> tuple[list[str], tuple[Round, ...]]:
    """Names of the images in the order in which they are shown, and the rounds.

    Raises:
        RowError: image_count (placeholders and images do not match), image_in_answer, empty_text.
    """
    places = [said.count(_PLACEHOLDER) for _, said, _ in turns]
    named = [name for _, _, images in turns for name in images]
    if any(places[1::2]):
        raise RowError("image_in_answer", "an answer shows an image, which this model does not draw")
    names = named or listed
    if named and listed and named != listed:
        raise RowError("image_count", f"the parts name {len(named)} images, the row lists {len(listed)} others")
    if sum(places) not in (len(names), 0) or len(names) > _MAX_IMAGES:
        raise RowError("image_count", f"{sum(places)} placeholders, but {len(names)} images")
    if not sum(places):
        places[0] = len(names)
    shown, rounds = 0, []
    for place in range(0, len(turns), 2):
        (_, question, _), (_, answer, _) = turns[place], turns[place + 1]
        last = shown + places[place]
        text(question, f"turn {place}")  # refuses marks of images that are not ours
        asked = text(_with_names(question, shown), f"turn {place}", slots=True)
        rounds.append(Round((asked,), (text(answer, f"turn {place + 1}"),), tuple(range(shown, last))))
        shown = last
    return names, tuple(rounds)


_EDGE = re.compile(rf"\A(?:\s*{_PLACEHOLDER})+|(?:{_PLACEHOLDER}\s*)+\Z|^[ \t]*{_PLACEHOLDER}[ \t]*$", re.M)


def _with_names(question: str, first: int) -> str:
    """`question` with placeholders at its edges and on lines of their own removed, and all others as names of
    images."""
    numbers = iter(range(first, first + question.count(_PLACEHOLDER)))
    edges = [range(*match.span()) for match in _EDGE.finditer(question)]

    def named(match: re.Match) -> str:
        number = next(numbers)
        return "" if any(match.start() in edge for edge in edges) else f"image <|image:{number}|>"

    return re.sub(_PLACEHOLDER, named, question)


def _find(images: ImageLookup, source: str, folders: list[str], name: str) -> ImageRef:
    if not folders:
        raise RowError("missing_image", f"{name}: the configuration names no images for {source}")
    return images.find(source, *(folder + name for folder in folders), name)
