"""A pretrained decoder learns to look: two names, own rows, and how well it sees and still talks afterwards.

Draws scenes of the miniature's world as a person's own rows (a folder of images, `train.jsonl` with descriptions and
questions, `heldout.jsonl` with single questions about other images), writes a configuration of nothing but the folder
and the two names, runs the whole graph, and prints minutes, accuracy per kind of question beside blanked images and
chance, and what the run's report says about forgetting.

    python -m benchmarks.learn_to_look --language FOLDER --out /tmp/look
"""

import json
from pathlib import Path
from typing import Any

from scripts.config.miniature import Kind, MiniatureConfig
from scripts.synthetic.language import Question, ask, describe
from scripts.synthetic.world import World

REPOSITORY = Path(__file__).resolve().parents[1]
KINDS: tuple[Kind, ...] = ("colour", "shape", "count")
_DESCRIBE = ("Describe the image.", "What does the image show?", "Tell me what you can see.")


def draw_rows(out: Path, images: int, heldout: int, seed: int) -> dict[str, int]:
    """Write images and rows into the folder `out`; return the number of rows per file."""
    world = World(MiniatureConfig(seed=seed, images=images + heldout, kinds=KINDS))
    (out / "images").mkdir(parents=True, exist_ok=True)
    for number in range(len(world)):
        (out / "images" / _file_name(number)).write_bytes(world.image(number))
    files = {
        "train.jsonl": [_training_row(world, number) for number in range(images)],
        "heldout.jsonl": [
            _row(number, [asked]) for number in range(images, len(world)) for asked in _questions(world, number)
        ],
    }
    for name, rows in files.items():
        (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()}


def _training_row(world: World, number: int) -> dict[str, Any]:
    """A description of every second image, and questions about the others."""
    if number % 2:
        return _row(number, _questions(world, number))
    prompt = world.draw("description", number).pick(_DESCRIBE)
    return _row(number, [Question("what", prompt, describe(world.scene(number)))])


def _questions(world: World, number: int) -> list[Question]:
    """A question of every kind, the count first: the others give some of it away."""
    draw = world.draw("own questions", number)
    asked = [ask(world.scene(number), kind, draw, world.settings) for kind in ("count", *draw.shuffled(KINDS[:2]))]
    return [one for one in asked if one]


def _row(number: int, asked: list[Question]) -> dict[str, Any]:
    messages = []
    for index, one in enumerate(asked):
        image = [{"type": "image"}] if index == 0 else []
        messages += [
            {"role": "user", "content": [*image, {"type": "text", "text": one.text}]},
            {"role": "assistant", "content": [{"type": "text", "text": one.answer}]},
        ]
    return {"messages": messages, "images": [f"images/{_file_name(number)}"]}


def _file_name(number: int) -> str:
    return f"{number:06d}.jpg"
