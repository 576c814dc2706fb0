"""The miniature's rows in the raw formats of the real datasets, field by field.

One writer per raw file: a function from the world to the JSON value. `ANNOTATIONS` maps the path of a file below the
data path to its writer; a new dataset is a new entry. Apart from their content the files are like the real ones.
"""

from collections.abc import Callable
from typing import Any

from scripts.synthetic.language import (
    DESCRIBE,
    Question,
    ask_what,
    captions,
    describe,
    every_name,
    name,
    pair_question,
    question,
)
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import CELLS, Scene
from scripts.synthetic.world import World

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def llava_detail(world: World) -> list[dict]:
    """LLaVA `detail_23k.json`: one request for a description, and the description."""
    rows = []
    for number in range(len(world)):
        draw = world.draw("llava detail", number)
        rows += [
            _llava_row(world, number, draw, [(draw.pick(DESCRIBE), describe(world.scene(number)))])
            for _ in range(draw.times(world.settings.rows.llava_detail))
        ]
    return rows


def llava_reasoning(world: World) -> list[dict]:
    """LLaVA `complex_reasoning_77k.json`: one question and its answer."""
    rows = []
    for number in range(len(world)):
        draw = world.draw("llava reasoning", number)
        known: list[str] = []
        for _ in range(draw.times(world.settings.rows.llava_reasoning)):
            for asked in _rounds(world, number, draw, 1, known):
                known.append(asked.text)
                rows.append(_llava_row(world, number, draw, [(asked.text, asked.answer)]))
    return rows


def llava_conversation(world: World) -> list[dict]:
    """LLaVA `conversation_58k.json`: several questions about one image."""
    rows = []
    for number in range(len(world)):
        draw = world.draw("llava conversation", number)
        for _ in range(draw.times(world.settings.rows.llava_dial)):
            asked = _rounds(world, number, draw, world.settings.rows.dial_rounds)
            if asked:
                rows.append(_llava_row(world, number, draw, [(each.text, each.answer) for each in asked]))
    return rows


def _rounds(
    world: World, number: int, draw: RandomStream, count: int, known: list[str] | None = None
) -> list[Question]:
    """Up to `count` different questions about one image, as many as its scene allows."""
    asked: list[Question] = []
    for _ in range(count):
        texts = [*(known or ()), *(each.text for each in asked)]
        found = question(world.scene(number), draw, world.settings, known=texts)
        if found:
            asked.append(found)
    return asked


def _llava_row(world: World, number: int, draw: RandomStream, rounds: list[tuple[str, str]]) -> dict:
    turns = []
    for round_number, (asked, answer) in enumerate(rounds):
        if round_number == 0:
            # The real files have the image before or after the first question.
            asked = f"<image>\n{asked}" if draw.unit() < 0.5 else f"{asked}\n<image>"
        turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": f"{world.coco_id(number):012d}", "image": world.file_name(number), "conversations": turns}


def cgd_instructions(world: World) -> dict:
    """MIMIC-IT `CGD_instructions.json`: questions about two images; those about the same pair name each other."""
    data: dict[str, dict] = {}
    for number in range(len(world)):
        for pair in range(world.draw("cgd pairs", number).times(world.settings.rows.cgd)):
            other = world.partner(number, pair)
            if other is None:
                continue
            numbers = (other, number)
            asked = _pair_rounds(world, numbers, world.draw("cgd", f"{number}/{pair}"))
            ids = [f"CGD_INS_{len(data) + index:06d}" for index in range(len(asked))]
            for id_, each in zip(ids, asked, strict=True):
                data[id_] = {
                    "instruction": each.text,
                    "answer": each.answer,
                    "image_ids": [f"CGD_IMG_{world.coco_id(n):012d}" for n in numbers],
                    "rel_ins_ids": [related for related in ids if related != id_],
                }
    return {"meta": {"version": "0.0.1", "time": "2023-06", "author": "miniature"}, "data": data}


def _pair_rounds(world: World, numbers: tuple[int, int], draw: RandomStream) -> list[Question]:
    scenes = (world.scene(numbers[0]), world.scene(numbers[1]))
    asked: list[Question] = []
    for _ in range(world.settings.rows.cgd_rounds):
        found = pair_question(scenes, draw, world.settings, [each.text for each in asked])
        if found:
            asked.append(found)
    return asked


def karpathy(world: World) -> dict:
    """Karpathy's `dataset.json`: five captions per image, under the file names of COCO 2014."""
    images = []
    for number in range(len(world)):
        draw = world.draw("captions", number)
        if not draw.times(world.settings.rows.coco_caption):
            continue
        split = draw.pick(("train",) * 67 + ("restval",) * 25 + ("val",) * 4 + ("test",) * 4)
        folder = "train2014" if split == "train" else "val2014"
        sentences = [
            {"tokens": text.replace(":", "").split(), "raw": text, "imgid": number, "sentid": 5 * number + index}
            for index, text in enumerate(captions(world.scene(number), draw))
        ]
        images.append(
            {
                "filepath": folder,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "filename": f"COCO_{folder}_{world.file_name(number)}",
                "imgid": number,
                "split": split,
                "sentences": sentences,
                "cocoid": world.coco_id(number),
            }
        )
    return {"images": images, "dataset": "coco"}


def aokvqa(world: World) -> list[dict]:
    """A-OKVQA `aokvqa_v1p0_train.json`: a question with four choices, ten direct answers and three rationales."""
    rows = []
    for number in range(len(world)):
        draw = world.draw("aokvqa", number)
        rows += [_aokvqa_row(world, number, draw) for _ in range(draw.times(world.settings.rows.aokvqa))]
    return rows


def _aokvqa_row(world: World, number: int, draw: RandomStream) -> dict:
    scene = world.scene(number)
    asked = ask_what(scene, draw, world.settings)
    choices = draw.shuffled([asked.answer, *_wrong_choices(world, asked.answer, draw)])
    direct = asked.answer.removeprefix("a ")
    return {
        "split": "train",
        "image_id": world.coco_id(number),
        "question_id": "".join(draw.pick(_BASE62) for _ in range(22)),
        "question": asked.text,
        "choices": choices,
        "correct_choice_idx": choices.index(asked.answer),
        "direct_answers": [direct] * 10,
        "difficult_direct_answer": False,
        "rationales": _rationales(scene, asked),
    }


def _wrong_choices(world: World, right: str, draw: RandomStream) -> list[str]:
    return draw.shuffled([choice for choice in (*every_name(world.settings), "nothing") if choice != right])[:3]


def _rationales(scene: Scene, asked: Question) -> list[str]:
    cell = next(cell for cell in CELLS if cell in asked.text)
    inside = "There is nothing" if asked.answer == "nothing" else f"There is {asked.answer}"
    others = [name(thing) for thing in scene if CELLS[thing.cell] != cell]
    rest = f"The other quarters show {' and '.join(others)}." if others else "The other quarters are empty."
    return [f"The {cell} of the image is asked about.", f"{inside} in that quarter.", rest]


ANNOTATIONS: dict[str, Callable[[World], Any]] = {
    "llava/detail_23k.json": llava_detail,
    "llava/complex_reasoning_77k.json": llava_reasoning,
    "llava/conversation_58k.json": llava_conversation,
    "MIMIC-IT/CGD_instructions.json": cgd_instructions,
    "coco_caption/dataset.json": karpathy,
    "aokvqa/annotations/aokvqa_v1p0_train.json": aokvqa,
}
