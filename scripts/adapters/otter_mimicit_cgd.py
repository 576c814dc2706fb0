"""otter_mimicit_cgd: all that is asked about the same two COCO images becomes one conversation.

    "CGD_INS_000000": {"instruction": "What differs?", "answer": "...",
                       "image_ids": ["CGD_IMG_000000000785", "CGD_IMG_..."], "rel_ins_ids": ["CGD_INS_000001"]}

Rounds are related if either names the other and both show the same images in the same order; chains of such relations
end in one record, whatever the order of the file. The order of its rounds is free, so it is a choice of the plan. Some
copies of the file pad image numbers to sixteen digits instead of twelve; the number counts, not its padding.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from scripts.adapters.base import Dropped, Images, Noted, Raw, RawRow, RowFault, coco_path, field, text
from scripts.records_schema import MAX_PERMUTED, Group, ImageName, Record, Round

FILE = "MIMIC-IT/CGD_instructions.json"
_IMAGE_ID = re.compile(r"CGD_IMG_([0-9]+)")


class _Instruction(NamedTuple):
    id: str
    question: str
    answer: str
    images: tuple[ImageName, ...]
    related: tuple[str, ...]


def records(raw: Raw, images: Images) -> Iterator[Record | Dropped | Noted]:
    """One conversation per group of related instructions, sorted by their smallest id."""
    rows = raw.rows(FILE)
    parsed: list[_Instruction] = []
    for row in rows:
        try:
            parsed.append(_instruction(row, images))
        except RowFault as fault:
            yield Dropped(fault.reason, f"{FILE} row {row.id}: {fault.detail}")
    # An id that occurs twice is two rows; relations mean the first of them.
    parsed.sort(key=lambda each: (each.id, each.images, each.question, each.answer, each.related))
    known = {row.id for row in rows}
    yield from _relations(parsed, known)
    for group in _groups(parsed):
        parts = [group[start : start + MAX_PERMUTED] for start in range(0, len(group), MAX_PERMUTED)]
        if len(parts) > 1:
            yield Noted("long_group", f"{group[0].id} and {len(group) - 1} more: cut into {len(parts)} conversations")
        yield from map(_record, parts)


def _instruction(row: RawRow, images: Images) -> _Instruction:
    question = text(field(row.value, "instruction", str), "the instruction")
    answer = text(field(row.value, "answer", str), "the answer")
    related = field(row.value, "rel_ins_ids", list)
    if not all(isinstance(other, str) for other in related):
        raise RowFault("bad_row", "'rel_ins_ids' holds something else than ids")
    ids = field(row.value, "image_ids", list)
    matches = [_IMAGE_ID.fullmatch(id_) if isinstance(id_, str) else None for id_ in ids]
    if len(ids) != 2 or not all(matches):
        raise RowFault("bad_row", f"'image_ids' should be two ids like CGD_IMG_000000000785, not {ids!r:.80}")
    names = tuple(images.find("coco", coco_path(match[1])) for match in matches)
    if names[0] == names[1]:
        raise RowFault("bad_row", f"both images are {ids[0]}")
    return _Instruction(text(row.id, "the id"), question, answer, names, tuple(related))


def _relations(parsed: list[_Instruction], known: set[str]) -> Iterator[Noted]:
    """Count relations that are not as they should be; `known` are the ids of all rows, dropped ones included."""
    by_id = {each.id: each for each in reversed(parsed)}
    for each in parsed:
        for other in each.related:
            if other == each.id:
                yield Noted("self_reference", each.id)
            elif other not in by_id:
                reason = "reference_to_dropped_row" if other in known else "reference_to_nothing"
                yield Noted(reason, f"{each.id} names {other}")
            elif by_id[other].images != each.images:
                yield Noted("reference_to_other_images", f"{each.id} names {other}")
            elif each.id not in by_id[other].related:
                yield Noted("one_sided_reference", f"{each.id} names {other}")


def _groups(parsed: list[_Instruction]) -> list[list[_Instruction]]:
    """Connected components of the relation, each sorted, in the order of their first members."""
    first = {}
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
    groups: dict[int, list[_Instruction]] = {}
    for number, each in enumerate(parsed):
        groups.setdefault(find(number), []).append(each)
    return list(groups.values())


def _record(group: list[_Instruction]) -> Record:
    images = group[0].images
    shown = tuple(range(len(images)))
    rounds = [Round((each.question,), (each.answer,), () if place else shown) for place, each in enumerate(group)]
    order = (Group("order", "permute", len(group)),) if len(group) > 1 else ()
    return Record(group[0].id, images, tuple(rounds), order, raw_rows=len(group))
