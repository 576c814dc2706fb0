"""The format that the five MIMIC-IT datasets share, and how related instructions become one conversation.

    "CGD_INS_000000": {"instruction": "What differs?", "answer": "...",
                       "image_ids": ["CGD_IMG_000000000785", "CGD_IMG_..."], "rel_ins_ids": ["CGD_INS_000001"]}

Two instructions are related if either names the other and both show the same images in the same order; the connected
components of this relation become records, independent of the order of the file. The order of the rounds of a record is
free, so the plan chooses it. An instruction whose image is missing is dropped: its text refers to that image.

Each of the datasets has its own adapter, which defines how image ids map to paths.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from scripts.adapters.base import Dropped, RowError, field, safe_path, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import MAX_PERMUTED, ChoiceGroup, ImageRef, Record, Round

FindImage = Callable[[str], Iterable[Note | ImageRef]]
"""From the id of an image to the image, preceded by any notes; raises RowError."""
MAX_IMAGES = 64


class Instruction(NamedTuple):
    """One row: a question with its answer, and the images that it is about."""

    id: str
    question: str
    answer: str
    images: tuple[ImageRef, ...]
    related: tuple[str, ...]


def conversations(
    raw: RawFiles, path: str, find: FindImage, count: int | None = None
) -> Iterator[Record | Dropped | Note]:
    """One conversation per group of related instructions, sorted by the smallest id of each group.

    Args:
        raw: the raw files of the dataset.
        path: the file of instructions, below the data path.
        find: from the id of an image to the image.
        count: the number of images that every instruction must show; None: any.
    """
    parsed: list[Instruction] = []
    known: set[str] = set()
    for row, result in instructions(raw, path, find, count):
        known.add(row.id)
        if isinstance(result, Instruction):
            parsed.append(result)
        else:
            yield result
    # An id that occurs twice is two rows; relations refer to the first of them.
    parsed.sort(key=lambda each: (each.id, each.images, each.question, each.answer, each.related))
    yield from _relations(parsed, known)
    for group in _groups(parsed):
        parts = [group[start : start + MAX_PERMUTED] for start in range(0, len(group), MAX_PERMUTED)]
        if len(parts) > 1:
            yield Note("long_group", f"{group[0].id} and {len(group) - 1} more: cut into {len(parts)} conversations")
        yield from map(_record, parts)


def instructions(
    raw: RawFiles, path: str, find: FindImage, count: int | None = None
) -> Iterator[tuple[RawRow, Instruction | Dropped | Note]]:
    """Every row of the file `path`, parsed or dropped; the notes about a row precede it."""
    for row in raw.rows(path):
        try:
            notes, instruction = _instruction(row, find, count)
            yield from ((row, note) for note in notes)
            yield row, instruction
        except RowError as error:
            yield row, Dropped(error.reason, f"{path} row {row.id}: {error.detail}")


def find_in_folder(images: ImageLookup, source: str, folder: str) -> FindImage:
    """A function that finds images whose id is their name in `folder`, with or without extension."""

    def find(id_: str) -> Iterator[ImageRef]:
        yield images.find(source, *candidate_paths(folder, id_))

    return find


def candidate_paths(folder: str, id_: str) -> list[str]:
    """The paths that the image with an id may have, in a container or as a file.

    Raises:
        RowError: unsafe_path (the id leads out of the folder).
    """
    return [f"{folder}{safe_path(id_)}{extension}" for extension in ("", ".png", ".jpg")]


def _instruction(row: RawRow, find: FindImage, count: int | None) -> tuple[list[Note], Instruction]:
    question = text(field(row.value, "instruction", str), "the instruction")
    answer = text(field(row.value, "answer", str), "the answer")
    related = field(row.value, "rel_ins_ids", list) if "rel_ins_ids" in row.value else []
    if not all(isinstance(other, str) for other in related):
        raise RowError("bad_row", "'rel_ins_ids' contains something else than ids")
    ids = field(row.value, "image_ids", list)
    if (
        not all(isinstance(id_, str) and id_ for id_ in ids)
        or not 0 < len(ids) <= MAX_IMAGES
        or len(ids) != (count or len(ids))
    ):
        raise RowError("bad_row", f"'image_ids' should be a list of {count or 'some'} ids of images, not {ids!r:.80}")
    notes: list[Note] = []
    images: list[ImageRef] = []
    for id_ in ids:
        for found in find(id_):
            if isinstance(found, Note):
                notes.append(found)
            else:
                images.append(found)
    if len(set(images)) != len(images):
        raise RowError("bad_row", f"an image is shown twice: {ids!r:.80}")
    return notes, Instruction(text(row.id, "the id"), question, answer, tuple(images), tuple(related))


def _relations(parsed: list[Instruction], known: set[str]) -> Iterator[Note]:
    """Notes about relations that are invalid; `known` are the ids of all rows, dropped ones included."""
    by_id = {each.id: each for each in reversed(parsed)}
    for each in parsed:
        for other in each.related:
            if other == each.id:
                yield Note("self_reference", each.id)
            elif other not in by_id:
                reason = "reference_to_dropped_row" if other in known else "reference_to_nothing"
                yield Note(reason, f"{each.id} names {other}")
            elif by_id[other].images != each.images:
                yield Note("reference_to_other_images", f"{each.id} names {other}")
            elif each.id not in by_id[other].related:
                yield Note("one_sided_reference", f"{each.id} names {other}")


def _groups(parsed: list[Instruction]) -> list[list[Instruction]]:
    """Connected components of the relation (union-find), each sorted, in the order of their first members."""
    first: dict[str, int] = {}
    for number, each in enumerate(parsed):
        first.setdefault(each.id, number)
    root = list(range(len(parsed)))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for number, each in enumerate(parsed):
        for other in each.related:
            if other in first and parsed[first[other]].images == each.images:
                one, two = sorted((find(number), find(first[other])))
                root[two] = one
    groups: dict[int, list[Instruction]] = {}
    for number, each in enumerate(parsed):
        groups.setdefault(find(number), []).append(each)
    return list(groups.values())


def _record(group: list[Instruction]) -> Record:
    images = group[0].images
    shown = tuple(range(len(images)))
    rounds = [
        Round((each.question,), (each.answer,), shown if number == 0 else ()) for number, each in enumerate(group)
    ]
    order = (ChoiceGroup("order", "permute", len(group)),) if len(group) > 1 else ()
    return Record(group[0].id, images, tuple(rounds), order, raw_rows=len(group))
