"""The questions, answers and captions of the miniature; no other module contains their wording.

Every kind of question has one template and one way to find the answer in the scene. A question has three forms:

    plain    "What is at the top-left?"                 the image is the latest one
    named    "What is at the top-left of image 2?"      several images have been shown together
    recall   "In image 1, what is at the top-left?"     other images came in between (the blend adds the opening)

`kinds` describes all forms as regular expressions for `kinds.json`, so that evaluation can sort rendered questions by
kind. No answer may dominate its kind: a model that ignores the image must not score well.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from scripts.config.miniature import MiniatureConfig
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import CELLS, COLOURS, SHAPES, SIZES, Object, Scene

NUMBERS = ("zero", "one", "two", "three", "four")

_ONE_IMAGE = {
    "what": "What is at the {cell}{image}?",
    "colour": "What colour is the {shape}{image}?",
    "shape": "What shape is the {colour} object{image}?",
    "count": "How many objects are there{image}?",
    "where": "Where is the {colour} {shape}{image}?",
    "size": "What size is the {colour} {shape}{image}?",
    "count_colour": "How many {colour} objects are there{image}?",
    "exist": "Is there a {colour} {shape}{image}?",
}
_TWO_IMAGES = {
    "compare": "Which image has more objects?",
    "which": "Which image shows a {colour} object?",
}
DESCRIBE = ("Describe the image.", "What does the image show?", "Tell me what you can see.")

_EMPTY_CELL = 0.2
_ABSENT_COLOUR = 0.4


_SHOWN = r"(?:Here (?:is|are) [^.?]*\. )?"
_NAMED = r"(?:image \d+|the \w+ image)"
"""How dialogues of the Sparkles kind open a question, and the names that an image may have in a question."""


class Question(NamedTuple):
    """A question of a kind in `MiniatureConfig.kinds`, and its only right answer."""

    kind: str
    text: str
    answer: str


def name(thing: Object) -> str:
    """`a small red circle`."""
    return " ".join(word for word in ("a", thing.size, thing.colour, thing.shape) if word)


def every_name(settings: MiniatureConfig) -> list[str]:
    """The names of all objects that may occur."""
    sizes = SIZES if settings.sizes == 2 else ("",)
    shapes, colours = SHAPES[: settings.shapes], tuple(COLOURS)[: settings.colours]
    return [name(Object(0, shape, colour, size)) for size in sizes for colour in colours for shape in shapes]


def describe(scene: Scene) -> str:
    """All objects with their positions, in reading order."""
    return " and ".join(f"{name(thing)} at the {CELLS[thing.cell]}" for thing in scene)


def captions(scene: Scene, draw: RandomStream) -> list[str]:
    """Five captions of a scene."""
    things = [name(thing) for thing in draw.shuffled(scene)]
    both = " and ".join(things)
    count = f"{NUMBERS[len(things)]} object{'s' * (len(things) > 1)}"
    return [
        both,
        f"an image of {' and '.join(reversed(things))}",
        f"{count}: {both}",
        describe(scene),
        f"{both} on a light background",
    ]


def ask(
    scene: Scene, kind: str, draw: RandomStream, settings: MiniatureConfig, image: int | None = None
) -> Question | None:
    """A question of `kind` about `scene`; None if the scene allows no unambiguous one.

    Args:
        scene: shown in the image.
        kind: of question about one image.
        draw: decides which object the question is about.
        settings: of the miniature.
        image: the number by which the question names the image; None: it does not.
    """
    filled = _ANSWERS[kind](scene, draw, settings)
    return _question(kind, filled, image) if filled else None


def ask_what(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> Question:
    """A question of the kind "what" about `scene`, which every scene allows."""
    return _question("what", _what(scene, draw, settings), None)


def _question(kind: str, filled: "_Filled", image: int | None) -> Question:
    words, answer = filled
    preposition = "of" if kind == "what" else "in"
    tail = "" if image is None else f" {preposition} image {image}"
    return Question(kind, _ONE_IMAGE[kind].format(image=tail, **words), answer)


def compare_counts(first: Scene, second: Scene) -> Question:
    """The question which of two scenes, shown as images 1 and 2, has more objects."""
    more = len(first) - len(second)
    answer = "both the same" if more == 0 else "image 1" if more > 0 else "image 2"
    return Question("compare", _TWO_IMAGES["compare"], answer)


def compare(first: Scene, second: Scene, kind: str, draw: RandomStream) -> Question | None:
    """A question of `kind` about two scenes, shown as images 1 and 2; None if the scenes allow none."""
    if kind == "compare":
        return compare_counts(first, second)
    seen = [{thing.colour for thing in scene} for scene in (first, second)]
    single = sorted(seen[0] ^ seen[1])
    if not single:
        return None
    colour = draw.pick(single)
    answer = "image 1" if colour in seen[0] else "image 2"
    return Question(kind, _TWO_IMAGES[kind].format(colour=colour), answer)


def question(
    scene: Scene, draw: RandomStream, settings: MiniatureConfig, image: int | None = None, known: Collection[str] = ()
) -> Question | None:
    """A question of a random kind whose text is not in `known`; None if the scene allows none."""
    for kind in draw.shuffled([kind for kind in settings.kinds if kind in _ONE_IMAGE]):
        asked = ask(scene, kind, draw, settings, image)
        if asked and asked.text not in known:
            return asked
    return None


def pair_question(
    scenes: tuple[Scene, Scene], draw: RandomStream, settings: MiniatureConfig, known: Collection[str] = ()
) -> Question | None:
    """A question about two scenes shown together: a comparison, or a question that names one of the images."""
    if draw.unit() < settings.rows.comparisons:
        for kind in draw.shuffled([kind for kind in settings.kinds if kind in _TWO_IMAGES]):
            asked = compare(*scenes, kind, draw)
            if asked and asked.text not in known:
                return asked
    for image in draw.shuffled((1, 2)):
        asked = question(scenes[image - 1], draw, settings, image, known)
        if asked:
            return asked
    return None


def questions(scenes: Sequence[Scene], draw: RandomStream, settings: MiniatureConfig) -> list[Question]:
    """One question of every kind that is possible for one scene, or for two shown together."""
    if len(scenes) == 1:
        asked = [ask(scenes[0], kind, draw, settings) for kind in settings.kinds if kind in _ONE_IMAGE]
    else:
        asked = [compare(scenes[0], scenes[1], kind, draw) for kind in settings.kinds if kind in _TWO_IMAGES]
        for image, scene in enumerate(scenes, start=1):
            asked += [ask(scene, kind, draw, settings, image) for kind in settings.kinds if kind in _ONE_IMAGE]
    return [one for one in asked if one]


def recall(text: str, image: int) -> str:
    """The question `text` asked again about an earlier image."""
    return f"In image {image}, {text[0].lower()}{text[1:]}"


_Filled = tuple[dict[str, str], str]
"""The words that fill a template, and the answer."""


def _what(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> _Filled:
    empty = sorted(set(range(len(CELLS))) - {thing.cell for thing in scene})
    if empty and draw.unit() < _EMPTY_CELL:
        return {"cell": CELLS[draw.pick(empty)]}, "nothing"
    thing = draw.pick(scene)
    return {"cell": CELLS[thing.cell]}, name(thing)


def _colour(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> _Filled | None:
    thing = _only(scene, draw, "shape")
    return thing and ({"shape": thing.shape}, thing.colour)


def _shape(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> _Filled | None:
    thing = _only(scene, draw, "colour")
    return thing and ({"colour": thing.colour}, thing.shape)


def _count(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> _Filled | None:
    return {}, NUMBERS[len(scene)]


def _where(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> _Filled | None:
    thing = _only(scene, draw, "colour", "shape")
    return thing and ({"colour": thing.colour, "shape": thing.shape}, CELLS[thing.cell])


def _size(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> _Filled | None:
    thing = _only(scene, draw, "colour", "shape")
    return thing and ({"colour": thing.colour, "shape": thing.shape}, thing.size)


def _count_colour(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> _Filled | None:
    present = Counter(thing.colour for thing in scene)
    absent = [colour for colour in tuple(COLOURS)[: settings.colours] if colour not in present]
    colour = draw.pick(absent) if absent and draw.unit() < _ABSENT_COLOUR else draw.pick(scene).colour
    return {"colour": colour}, NUMBERS[present[colour]]


def _exist(scene: Scene, draw: RandomStream, settings: MiniatureConfig) -> _Filled | None:
    present = {(thing.colour, thing.shape) for thing in scene}
    every = [(c, s) for c in tuple(COLOURS)[: settings.colours] for s in SHAPES[: settings.shapes]]
    absent = [pair for pair in every if pair not in present]
    there = not absent or draw.unit() < 0.5
    colour, shape = draw.pick(sorted(present) if there else absent)
    return {"colour": colour, "shape": shape}, "yes" if there else "no"


_ANSWERS: dict[str, Callable[[Scene, RandomStream, MiniatureConfig], _Filled | None]] = {
    "what": _what,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "where": _where,
    "size": _size,
    "count_colour": _count_colour,
    "exist": _exist,
}


def _only(scene: Scene, draw: RandomStream, *properties: str) -> Object | None:
    """An object whose combination of `properties` is unique in the scene; None if there is none."""
    keys = [tuple(getattr(thing, each) for each in properties) for thing in scene]
    single = [thing for thing, key in zip(scene, keys, strict=True) if keys.count(key) == 1]
    return draw.pick(single) if single else None


def kinds(settings: MiniatureConfig) -> list[dict]:
    """The rows of `kinds.json`: every rendered question matches the pattern of exactly one kind.

    Kinds with `scored` false have long answers, for which exact match is meaningless.
    """
    rows = []
    for kind in (kind for kind in settings.kinds if kind in _ONE_IMAGE):
        preposition = "of" if kind == "what" else "in"
        plain = _pattern(_ONE_IMAGE[kind])
        rows += [
            _kind(kind, plain, "one"),
            _kind(f"named_{kind}", _SHOWN + _pattern(_ONE_IMAGE[kind], rf" {preposition} {_NAMED}"), "several"),
            _kind(f"recall_{kind}", rf"In image \d+, {plain[0].lower()}{plain[1:]}", "several"),
        ]
    rows += [
        _kind(kind, _SHOWN + _pattern(_TWO_IMAGES[kind]), "several") for kind in settings.kinds if kind in _TWO_IMAGES
    ]
    openings = "|".join(f"[{text[0]}{text[0].lower()}]{re.escape(text[1:])}" for text in DESCRIBE)
    # The prompts of minigpt4 and coco_caption and the phrases of aokvqa are defined by their adapters; these words
    # distinguish them.
    long = r".*\b(?:in detail|[eE]verything|thorough|at length|through|careful|as detailed|cannot see)\b.*"
    rows.append(_kind("describe", rf"(?:In image \d+, )?(?:{openings})|{long}", "one", scored=False))
    short = r"\b(?:[cC]aption|one sentence|[bB]riefly|few words)\b"
    rows.append(_kind("caption", rf"[^?]*{short}[^?]*", "one", scored=False))
    rows.append(_kind("reason", r"[^?]+\? .+", "one", scored=False))
    return rows


def _pattern(template: str, image: str = "") -> str:
    words = {"cell": CELLS, "shape": SHAPES, "colour": COLOURS, "size": SIZES}
    choices = {field: f"(?:{'|'.join(map(re.escape, values))})" for field, values in words.items()}
    return template.replace("?", r"\?").format(image=image, **choices)


def _kind(name_: str, pattern: str, images: str, scored: bool = True) -> dict:
    return {"name": name_, "pattern": f"^(?:{pattern})$", "images": images, "scored": scored}
