"""A pretrained decoder learns to look: two names, own rows, and how well it sees and still talks afterwards.

Draws scenes of the miniature's world as a person's own rows (a folder of images, `train.jsonl` with questions about
every second image and a description of the others, `heldout.jsonl` with single questions about other images), writes a
configuration of nothing but the folder and the two names, runs the whole graph, and prints minutes, accuracy per kind
of question beside blanked images, and what the run's report says about forgetting.

    python -m benchmarks.learn_to_look --language FOLDER --folder DIR [--images 2800] [--vision FOLDER]

FOLDER holds a decoder that was tuned to chat, DIR takes rows, configuration and results; a run that was stopped
continues. Nothing of the configuration is set but the two names and the folder of rows: it shows what the defaults do.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from scripts.common.files import read_json
from scripts.config.miniature import Kind, MiniatureConfig
from scripts.evaluation.forgetting_summary import FILE, summary_line
from scripts.evaluation.statistics import wilson
from scripts.synthetic.language import DESCRIBE, NUMBERS, Question, ask
from scripts.synthetic.language import name as object_name
from scripts.synthetic.world import World

REPOSITORY = Path(__file__).resolve().parents[1]
KINDS: tuple[Kind, ...] = ("colour", "shape", "count")
_DATASET = "scenes"
_DRAWS = 6
_WORDS = {"colour": "What colour", "shape": "What shape", "count": "How many"}


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
    """Questions about every second image, of which none answers another, and what the others show."""
    draw, scene = world.draw("own rows", number), world.scene(number)
    # A description counts the objects too, so few questions have to.
    kinds = () if number % 2 else draw.shuffled(KINDS if number % 8 == 0 else KINDS[:2])
    asked: list[Question] = []
    for kind in kinds:
        drawn = (ask(scene, kind, draw, world.settings) for _ in range(_DRAWS))
        asked += [one for one in drawn if one and not any(_answers(one, other) for other in asked)][:1]
    things = [object_name(thing) for thing in scene]
    what = f"{NUMBERS[len(things)]} object{'s' * (len(things) > 1)}: {' and '.join(things)}"
    return _row(number, asked or [Question("what", draw.pick(DESCRIBE), what)])


def _answers(one: Question, other: Question) -> bool:
    return one.answer in other.text or other.answer in one.text


def _questions(world: World, number: int) -> list[Question]:
    draw = world.draw("own questions", number)
    asked = [ask(world.scene(number), kind, draw, world.settings) for kind in KINDS]
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


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """The rows and the two names, and nothing else."""
    rows = {"folder": str(args.folder / "rows"), "split": {"files": ["heldout.jsonl"]}}
    return {"custom": {_DATASET: rows}, "models": {"look": {"vision": args.vision, "language": args.language}}}


def accuracy(answers: Path) -> list[str]:
    """A line for every kind of question: exact match with images, and with blanked images."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in answers.read_text(encoding="utf-8").splitlines():
        turn = json.loads(line)
        if not turn["test"].startswith(f"{_DATASET}:heldout"):
            continue  # held-out rows of replay, and of the training file by the share that is held out of every blend
        kind = next(kind for kind, word in _WORDS.items() if word in turn["question"])
        for name in (kind, "all"):
            counts[name, "asked"] += 1
            counts[name, "right"] += turn["correct"]
            counts[name, "blanked"] += turn.get("blanked", {}).get("correct", False)
    lines = []
    for name in (*KINDS, "all"):
        asked, right = counts[name, "asked"], counts[name, "right"]
        low, high = wilson(right, asked)
        lines.append(
            f"{name:8} {right / asked:6.1%} ({low:.1%} to {high:.1%}, n = {asked}), "
            f"blanked {counts[name, 'blanked'] / asked:.1%}"
        )
    return lines


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--language", required=True, help="folder of a decoder that was tuned to chat")
    arguments.add_argument("--vision", default="miniature", help="folder of an encoder (default: the miniature's)")
    arguments.add_argument("--folder", required=True, type=Path, help="folder to work in")
    arguments.add_argument("--images", type=int, default=2800, help="images that are trained on (default: 2800)")
    arguments.add_argument("--heldout", type=int, default=190, help="images that are asked about (default: 190)")
    arguments.add_argument("--seed", type=int, default=1, help="seed of the scenes (default: 1)")
    arguments.add_argument("--cores", type=int, default=os.cpu_count())
    args = arguments.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    print(draw_rows(args.folder / "rows", args.images, args.heldout, args.seed))
    recipe = args.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(configuration(args), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--cores"]
    command += [str(args.cores), "--directory", str(args.folder), "--configfile", str(recipe)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    minutes = (time.perf_counter() - begin) / 60
    root = args.folder / f"results-{_DATASET}"
    print(f"{minutes:.1f} minutes for the whole graph")
    for run in ("align", "tune"):
        finished = read_json(root / "train" / run / "finished.json")
        curve = ", ".join(f"{loss:.3f} after step {step}" for step, loss in finished["curve"]["heldout"])
        print(f"{run}: held-out loss {curve}")
    print("\n".join(accuracy(root / "evaluate/tune/heldout/final.jsonl")))
    print(summary_line(read_json(root / "evaluate/tune" / FILE)))


if __name__ == "__main__":
    main()
