"""The task files of the miniature, in the format of lmms-eval (scripts/evaluation/task_files.py).

    choices.yaml   questions about one image with all possible answers, to be ranked by likelihood
    orders.yaml    questions about two images, each asked twice: with its images in either order

Their documents (`choices.jsonl`) and images are in the same folder. The images are generated for them alone.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from scripts.config.miniature import MiniatureConfig
from scripts.synthetic.language import NUMBERS, Question, ask, compare_counts, every_name, question
from scripts.synthetic.scenes import CELLS, COLOURS, SHAPES, SIZES, Scene, draw_scene, jpeg, render
from scripts.synthetic.world import World

TASKS = ("choices", "orders")
_DOCUMENTS = 24

_YAML = {
    "choices": """\
# Which answer is the most likely one? Nothing is generated: the likelihood of every choice is computed.
task: miniature_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: choices.jsonl
test_split: test
output_type: multiple_choice
doc_to_visual: images
doc_to_text: question
doc_to_choice: choices
doc_to_target: target
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1
""",
    "orders": """\
# Does the answer change with the order of the images? The versions of a question share a `cluster_key`.
task: miniature_orders
dataset_path: json
dataset_kwargs:
  data_files:
    test: orders.jsonl
test_split: test
output_type: generate_until
doc_to_visual: images
doc_to_text: question
doc_to_target: answer
cluster_key: group
metric_list:
  - metric: exact_match
  - metric: which_image
  - metric: all_versions
  - metric: order_sensitivity
generation_kwargs:
  max_new_tokens: 16
metadata:
  version: 1
""",
}


def tasks(world: World) -> dict[str, bytes]:
    """The contents of all files of the tasks, by path below their folder."""
    files: dict[str, bytes] = {}
    for name, make in _MAKERS.items():
        documents = []
        for number in range(_DOCUMENTS):
            for document, scenes in make(world, f"{name}_{number:02d}"):
                documents.append(document)
                for path, scene in zip(document["images"], scenes, strict=True):
                    if path not in files:
                        files[path] = jpeg(render(scene, world.draw("task pixels", path), world.settings.image_size))
        lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
        files[f"{name}.jsonl"] = "".join(lines).encode()
        files[f"{name}.yaml"] = _YAML[name].encode()
    return files


Document = tuple[dict[str, Any], tuple[Scene, ...]]


def _choices(world: World, name: str) -> Iterator[Document]:
    settings, draw = world.settings, world.draw("task", name)
    scene = draw_scene(draw, settings)
    asked = question(scene, draw, settings)
    if asked:
        choices = _answers(asked.kind, settings)
        yield (
            {
                "id": name,
                "images": [f"images/{name}.jpg"],
                "question": asked.text,
                "choices": choices,
                "target": choices.index(asked.answer),
            },
            (scene,),
        )


def _orders(world: World, name: str) -> Iterator[Document]:
    settings, draw = world.settings, world.draw("task", name)
    scenes = (draw_scene(draw, settings), draw_scene(draw, settings))
    paths = [f"images/{name}_{letter}.jpg" for letter in "ab"]
    for number, versions in enumerate(_versions(world, name, scenes), start=1):
        for order, asked in zip((1, -1), versions, strict=True):
            yield (
                {
                    "id": f"{name}_{number}_{'ab' if order == 1 else 'ba'}",
                    "group": f"{name}_{number}",
                    "images": paths[::order],
                    "question": asked.text,
                    "answer": asked.answer,
                },
                scenes[::order],
            )


def _versions(world: World, name: str, scenes: tuple[Scene, Scene]) -> Iterator[tuple[Question, Question]]:
    """Pairs of questions: for the two scenes in one order, and in the other."""
    settings, draw = world.settings, world.draw("task question", name)
    if "compare" in settings.kinds:
        yield compare_counts(scenes[0], scenes[1]), compare_counts(scenes[1], scenes[0])
    plain = question(scenes[0], draw, settings)
    if plain:
        # Equal streams ask about the same object of the scene, as image 1 and, in the other order, as image 2.
        first, second = (
            ask(scenes[0], plain.kind, world.draw("task object", name), settings, image) for image in (1, 2)
        )
        if first and second:
            yield first, second


def _answers(kind: str, settings: MiniatureConfig) -> list[str]:
    """All possible answers to questions of a kind about one image."""
    return {
        "what": lambda: ["nothing", *every_name(settings)],
        "colour": lambda: list(COLOURS)[: settings.colours],
        "shape": lambda: list(SHAPES[: settings.shapes]),
        "count": lambda: list(NUMBERS),
        "count_colour": lambda: list(NUMBERS),
        "where": lambda: list(CELLS),
        "size": lambda: list(SIZES),
        "exist": lambda: ["yes", "no"],
    }[kind]()


_MAKERS: dict[str, Callable[[World, str], Iterator[Document]]] = {"choices": _choices, "orders": _orders}
