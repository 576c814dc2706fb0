"""sparkles_dialogue: dialogues in which every question may bring images, which the texts then refer to by name.

    {"dialogue": [{"role": "user", "content": "Is IMAGE#12<Img><ImageHere></Img> like IMAGE#121<Img><ImageHere></Img>?",
                   "images": [{"image_id": "12", "caption": "..."}, {"image_id": "121", "caption": "..."}]},
                  {"role": "assistant", "content": "IMAGE#12 shows ..."}, ...]}

An image is shown with the turn that lists it first. Its name in the text becomes a slot, in one of two styles that
agree with the numbers in the image headers of the prompt: "image 1" or "the first image". An id may be the prefix of
another id; the longest known id is taken. A last question without an answer is left out and counted.
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
_STYLES = ("{image} <|image:{index}|>", "{the} <|image:{index}:ordinal|> image")


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
                yield Note("prefix_id", f"{path} row {row.id}: the id {shorter} is a prefix of another")
            yield record

        yield from convert_rows(raw.rows(path), convert, path)


def _turns(row: Any) -> list[dict]:
    """The turns of a dialogue.

    Raises:
        RowError: bad_row (no dialogue, or user and assistant do not alternate).
    """
    turns = field(row, "dialogue", list)
    for number, turn in enumerate(turns):
        role = field(turn, "role", str)
        if role != _ROLES[number % 2]:
            raise RowError("bad_row", f"turn {number} is of {role!r}, not of {_ROLES[number % 2]!r}")
    return turns


def _record(id_: str, turns: list[dict], folder: str, images: ImageLookup) -> tuple[Record, list[str]]:
    """The record of a dialogue, and the ids of its images."""
    indices: dict[str, int] = {}
    found: list[ImageRef] = []
    shown: list[tuple[int, ...]] = []
    for turn in turns[::2]:
        first = len(found)
        for entry in field(turn, "images", list) if "images" in turn else []:
            name = str(field(entry, "image_id", str, int))
            if name not in indices:
                indices[name] = len(found)
                found.append(images.find(SOURCE, f"{folder}{file_stem(name)}.jpg"))
        shown.append(tuple(range(first, len(found))))
    texts = [_wordings(_content(turn, number), indices, number) for number, turn in enumerate(turns)]
    # A text that names an image has one wording per style, and all texts of a record take the same style.
    rounds = [
        Round(question, answer, images_of_round, _group(question), _group(answer))
        for question, answer, images_of_round in zip(texts[::2], texts[1::2], shown, strict=True)
    ]
    styled = any(len(wordings) > 1 for wordings in texts)
    groups = (ChoiceGroup("naming", "pick", len(_STYLES)),) if styled else ()
    return Record(id_, tuple(found), tuple(rounds), groups), list(indices)


def _content(turn: dict, number: int) -> str:
    content = field(turn, "content", str)
    return text(_PLACEHOLDER.sub("", content), f"turn {number}")


def _group(wordings: tuple[str, ...]) -> int:
    return 0 if len(wordings) > 1 else -1


def _wordings(content: str, indices: dict[str, int], turn: int) -> tuple[str, ...]:
    """`content` with slots instead of names: one text, or one per style if it names an image.

    Raises:
        RowError: bad_row (it names an image that no turn shows).
    """
    if "IMAGE#" not in content:
        return (content,)
    wordings = tuple(_with_slots(content, indices, style) for style in _STYLES) if indices else (content,)
    if unknown := re.search(r"IMAGE#\S{0,20}", wordings[0]):
        raise RowError("bad_row", f"turn {turn} names {unknown[0]!r}, which no turn shows")
    return wordings


def _with_slots(content: str, indices: dict[str, int], style: str) -> str:
    # Longest first: if both "12" and "121" are known, IMAGE#121 must not become the name of 12 followed by "1".
    known = "|".join(re.escape(name) for name in sorted(indices, key=len, reverse=True))

    def slot(match: re.Match[str]) -> str:
        sentence_start = match[1] is not None
        image, the = ("Image", "The") if sentence_start else ("image", "the")
        return (match[1] or "") + style.format(index=indices[match[2]], image=image, the=the)

    return re.sub(f"(^|[.!?][\"')]?\\s+)?IMAGE#({known})", slot, content)
