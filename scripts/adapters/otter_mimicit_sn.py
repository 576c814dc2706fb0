"""otter_mimicit_sn: dialogues about moving through a room, over frames of its scan (ScanNet).

    "SN_00_INS_scene0000_00_activity0_round0": {"instruction": "...", "answer": "...",
        "image_ids": ["SN_IMG_scene0000_00_color_100", ...], "rel_ins_ids": [...]}

The ids number the rounds of a dialogue, and later rounds refer to earlier ones, so their order is kept. An image is
shown with the round that lists it first. A dialogue with an unusable round is dropped as a whole.
"""

import re
from collections.abc import Iterator

from scripts.adapters.base import Dropped
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.mimicit import Instruction, find_in_folder, instructions
from scripts.adapters.raw import Note, RawFiles
from scripts.common.records import Record, Round

FILE = "MIMIC-IT/SN_instructions.json"
_ROUND = re.compile(r"(.+)_round([0-9]{1,9})")


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per dialogue, sorted by their ids."""
    dialogues: dict[str, list[tuple[int, Instruction]]] = {}
    broken: dict[str, str] = {}
    for row, result in instructions(raw, FILE, find_in_folder(images, "mimicit_sn", "MIMIC-IT/SN/")):
        dialogue, number = _dialogue_and_round(row.id)
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


def _dialogue_and_round(id_: str) -> tuple[str, int]:
    """Dialogue and number of a round; an id without a number is a dialogue of one round."""
    match = _ROUND.fullmatch(id_)
    return (match[1], int(match[2])) if match else (id_, 0)


def _record(dialogue: str, rounds: list[Instruction]) -> Record:
    images = list(dict.fromkeys(image for each in rounds for image in each.images))
    shown, converted = 0, []
    for each in rounds:
        last = max([shown, *(images.index(image) + 1 for image in each.images)])
        converted.append(Round((each.question,), (each.answer,), tuple(range(shown, last))))
        shown = last
    return Record(dialogue, tuple(images), tuple(converted), raw_rows=len(rounds))
