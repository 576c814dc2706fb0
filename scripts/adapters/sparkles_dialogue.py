"""sparkles_dialogue: dialogues in which every turn may bring images, which are then spoken of by name.

    {"dialogue": [{"role": "user", "content": "Is IMAGE#12<Img><ImageHere></Img> like IMAGE#121<Img><ImageHere></Img>?",
                   "images": [{"image_id": "12", "caption": "..."}, {"image_id": "121", "caption": "..."}]},
                  {"role": "assistant", "content": "IMAGE#12 shows ..."}, ...]}

An image is shown with the turn that lists it first. Its name in the text becomes a slot, in one of two styles that
agree with the numbers of the prompt's headers: "image 1" or "the first image". One id may be the beginning of another;
the longest known id counts. A last question without an answer is left out and counted.
"""

import re
from collections.abc import Iterator
from typing import Any

from scripts.adapters.base import Dropped, RowError, convert_rows, field, file_stem, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import ChoiceGroup, ImageRef, Record, Round

SOURCE = "sparkles"
FOLDERS = {
    "SparklesDialogueCC/annotations/SparklesDialogueCC.json": "SparklesDialogueCC/images/",
    "SparklesDialogueVG/annotations/SparklesDialogueVG.json": "SparklesDialogueVG/images/",
}
_ROLES = ("user", "assistant")
_PLACEHOLDER = re.compile(r"[ \t]*<Img>\s*(?:<ImageHere>)?\s*</Img>")
_STYLES = ("{image} <|image:{place}|>", "{the} <|image:{place}:ordinal|> image")


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """The dialogues of both files."""
    for path, folder in FOLDERS.items():
        stem = path.rsplit("/", 1)[1].removesuffix(".json")

        def convert(row: RawRow, path: str = path, folder: str = folder, stem: str = stem) -> Iterator[Record | Note]:
            turns = _turns(row.value)
            if len(turns) % 2:
                yield Note("unanswered_question", f"{path} row {row.id}: the last of {len(turns)} turns is left out")
                turns = turns[:-1]
            if not turns:
                raise RowError("bad_row", "no answer")
            record, ids = _record(f"{stem}-{row.id}", turns, folder, images)
            shorter = next((one for one in ids for other in ids if one != other and other.startswith(one)), None)
            if shorter is not None:
                yield Note("prefix_id", f"{path} row {row.id}: the id {shorter} is the beginning of another")
            yield record

        yield from convert_rows(raw.rows(path), convert, path)


def _turns(row: Any) -> list[dict]:
    """The turns of a dialogue, user and assistant by turns.

    Raises:
        RowError: bad_row.
    """
    turns = field(row, "dialogue", list)
    for place, turn in enumerate(turns):
        role = field(turn, "role", str)
        if role != _ROLES[place % 2]:
            raise RowError("bad_row", f"turn {place} is of {role!r}, not of {_ROLES[place % 2]!r}")
    return turns


def _record(id_: str, turns: list[dict], folder: str, images: ImageLookup) -> tuple[Record, list[str]]:
    """The record of a dialogue, and the ids of its images."""
    places: dict[str, int] = {}
    found: list[ImageRef] = []
    shown: list[tuple[int, ...]] = []
    for turn in turns[::2]:
        first = len(found)
        for entry in field(turn, "images", list) if "images" in turn else []:
            name = str(field(entry, "image_id", str, int))
            if name not in places:
                places[name] = len(found)
                found.append(images.find(SOURCE, f"{folder}{file_stem(name)}.jpg"))
        shown.append(tuple(range(first, len(found))))
    said = [_named(_said(turn, place), places, place) for place, turn in enumerate(turns)]
    # Every text that names an image has one wording per style, and all of a record take the same style.
    styled = any(len(texts) > 1 for texts in said)
    rounds = []
    for place in range(0, len(turns), 2):
        question, answer = said[place], said[place + 1]
        groups = (0 if len(texts) > 1 else -1 for texts in (question, answer))
        rounds.append(Round(question, answer, shown[place // 2], *groups))
    groups = (ChoiceGroup("naming", "pick", len(_STYLES)),) if styled else ()
    return Record(id_, tuple(found), tuple(rounds), groups), list(places)


def _said(turn: dict, place: int) -> str:
    content = field(turn, "content", str)
    return text(_PLACEHOLDER.sub("", content), f"turn {place}")


def _named(said: str, places: dict[str, int], turn: int) -> tuple[str, ...]:
    """`said` with slots in the place of names: one text, or one per style if any image is named.

    Raises:
        RowError: bad_row (an image is named that no turn shows).
    """
    if "IMAGE#" not in said:
        return (said,)
    # Longest first: where "12" and "121" are both known, IMAGE#121 must not become the name of 12 and a "1".
    known = "|".join(re.escape(name) for name in sorted(places, key=len, reverse=True))
    pattern = re.compile(f"(^|[.!?][\"')]?\\s+)?IMAGE#({known})") if known else None

    def slot(style: str) -> str:
        def replace(match: re.Match) -> str:
            start = match[1] is not None
            words = {"image": "Image" if start else "image", "the": "The" if start else "the"}
            return (match[1] or "") + style.format(place=places[match[2]], **words)

        return pattern.sub(replace, said)

    texts = tuple(slot(style) for style in _STYLES) if pattern else (said,)
    if unknown := re.search(r"IMAGE#\S{0,20}", texts[0]):
        raise RowError("bad_row", f"turn {turn} names {unknown[0]!r}, which no turn shows")
    return texts
