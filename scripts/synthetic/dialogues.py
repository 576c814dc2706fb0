"""A suite of dialogues for evaluation, in the format of the original's evaluation files, with the right answers.

    dialogues.json   {test name: [[question, "path path ..."], [question], ...]}: rounds in order, images optional
    answers.json     {test name: [answer, ...]}

Its images are generated for it alone and do not occur in training data.
"""

from collections.abc import Callable
from typing import NamedTuple

from scripts.synthetic.language import Question, compare_counts, pair_question, question, recall
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import Scene, draw_scene, jpeg, render
from scripts.synthetic.world import World

_PER_FORM = 5


class Turn(NamedTuple):
    """One round: indices of the scenes shown in it, its question and the right answer."""

    shows: tuple[int, ...]
    text: str
    answer: str


class Suite(NamedTuple):
    """The contents of the suite's two files, and its images by path below the suite's folder."""

    dialogues: dict[str, list[list[str]]]
    answers: dict[str, list[str]]
    images: dict[str, bytes]


def suite(world: World) -> Suite:
    """All dialogues for a world."""
    result = Suite({}, {}, {})
    for form, converse in _FORMS.items():
        for number in range(1, _PER_FORM + 1):
            _add(result, world, f"{form}_{number}", converse)
    return result


def _add(result: Suite, world: World, test: str, converse: Callable[..., list[Turn]]) -> None:
    draw = world.draw("dialogue", test)
    scenes = (draw_scene(draw, world.settings), draw_scene(draw, world.settings))
    turns = converse(world, scenes, draw)
    paths = [f"images/{test}_{letter}.jpg" for letter in "ab"]
    for number in sorted({number for turn in turns for number in turn.shows}):
        look = world.draw("dialogue pixels", f"{test}/{number}")
        result.images[paths[number]] = jpeg(render(scenes[number], look, world.settings.image_size))
    for turn in turns:
        shown = " ".join(paths[number] for number in turn.shows)
        result.dialogues.setdefault(test, []).append([turn.text, shown] if shown else [turn.text])
    result.answers[test] = [turn.answer for turn in turns]


def _single(world: World, scenes: tuple[Scene, Scene], draw: RandomStream) -> list[Turn]:
    """One image, three questions."""
    asked: list[Question] = []
    for _ in range(3):
        found = question(scenes[0], draw, world.settings, known=[each.text for each in asked])
        asked += [found] if found else []
    return _turns(asked, (0,))


def _pair(world: World, scenes: tuple[Scene, Scene], draw: RandomStream) -> list[Turn]:
    """Two images at once, three questions about both."""
    asked: list[Question] = []
    for _ in range(3):
        found = pair_question(scenes, draw, world.settings, [each.text for each in asked])
        asked += [found] if found else []
    return _turns(asked, (0, 1))


def _recall(world: World, scenes: tuple[Scene, Scene], draw: RandomStream) -> list[Turn]:
    """One image after the other; then a comparison, and another question about the first image."""
    turns: list[Turn] = []
    for number, scene in enumerate(scenes):
        found = question(scene, draw, world.settings)
        turns += _turns([found] if found else [], (number,))
    if "compare" in world.settings.kinds:
        turns += _turns([compare_counts(*scenes)], ())
    again = question(scenes[0], draw, world.settings, known=[turn.text for turn in turns])
    return [*turns, Turn((), recall(again.text, 1), again.answer)] if again and turns[0].shows == (0,) else turns


def _turns(asked: list[Question], shows: tuple[int, ...]) -> list[Turn]:
    return [Turn(shows if number == 0 else (), each.text, each.answer) for number, each in enumerate(asked)]


_FORMS = {"single": _single, "pair": _pair, "recall": _recall}
