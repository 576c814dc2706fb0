"""otter_mimicit_sn: dialogues about moving through a room, over frames of its scan (ScanNet).

    "SN_00_INS_scene0000_00_activity0_round0": {"instruction": "...", "answer": "...",
        "image_ids": ["SN_IMG_scene0000_00_color_100", ...], "rel_ins_ids": [...]}

The ids number the rounds of a dialogue, and later rounds answer to earlier ones: their order is kept. An image is shown
with the round that lists it first. A dialogue of which a round cannot be used is not used at all.
"""

import re
from collections.abc import Iterator

from scripts.adapters.base import Dropped
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.mimicit import Instruction, found_in, instructions
from scripts.adapters.raw import Note, RawFiles
from scripts.common.records import Record, Round

FILE = "MIMIC-IT/SN_instructions.json"
_ROUND = re.compile(r"(.+)_round([0-9]{1,9})")


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per dialogue, sorted by their ids."""
    dialogues: dict[str, list[tuple[int, Instruction]]] = {}
    broken: dict[str, str] = {}
    for row, result in instructions(raw, FILE, found_in(images, "mimicit_sn", "MIMIC-IT/SN/")):
        dialogue, number = _place(row.id)
        if isinstance(result, Instruction):
            dialogues.setdefault(dialogue, []).append((number, result))
        else:
            if isinstance(result, Dropped):
                broken.setdefault(dialogue, row.id)
            yield result
    for dialogue, rounds in sorted(dialogues.items()):
        rounds.sort()
        numbers = [number for number, _ in rounds]
        if dialogue in broken:
            example = f"{dialogue}: its round {broken[dialogue]} cannot be used"
            yield Dropped("incomplete_dialogue", example, len(rounds))
        elif len(set(numbers)) != len(numbers) or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            yield Dropped("incomplete_dialogue", f"{dialogue}: its rounds have the numbers {numbers}", len(rounds))
        else:
            yield _record(dialogue, [instruction for _, instruction in rounds])


def _place(id_: str) -> tuple[str, int]:
    """Dialogue and number of a round; an id that does not say is a dialogue of its own."""
    match = _ROUND.fullmatch(id_)
    return (match[1], int(match[2])) if match else (id_, 0)


def _record(dialogue: str, rounds: list[Instruction]) -> Record:
    names = list(dict.fromkeys(name for each in rounds for name in each.images))
    shown, made = 0, []
    for each in rounds:
        last = max([shown, *(names.index(name) + 1 for name in each.images)])
        made.append(Round((each.question,), (each.answer,), tuple(range(shown, last))))
        shown = last
    return Record(dialogue, tuple(names), tuple(made), raw_rows=len(rounds))
