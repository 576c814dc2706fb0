"""Answers to the miniature's questions, for tests that check what the generator claims."""

import re

from scripts.synthetic.language import describe
from scripts.synthetic.scenes import CELLS

NUMBERS = ("zero", "one", "two", "three", "four")


def solve(asked: str, scenes) -> str:
    """The answer to a question about `scenes`, found in another way than by the generator: by reading the question."""
    if asked == "Which image has more objects?":
        one, two = map(len, scenes)
        return "both the same" if one == two else f"image {1 + (two > one)}"
    if match := re.fullmatch(r"Which image shows a (\w+) object\?", asked):
        (place,) = [n for n, scene in enumerate(scenes) if match[1] in {o.colour for o in scene}]
        return f"image {place + 1}"
    place = re.search(r" (?:of|in) image (\d)", asked)
    scene = scenes[int(place[1]) - 1] if place else scenes[0]
    asked = asked.replace(place[0], "") if place else asked
    if match := re.fullmatch(r"What is at the (.+)\?", asked):
        found = [o for o in scene if CELLS[o.cell] == match[1]]
        return " ".join(f"a {found[0].size} {found[0].colour} {found[0].shape}".split()) if found else "nothing"
    if match := re.fullmatch(r"What colour is the (\w+)\?", asked):
        return _single({o.colour for o in scene if o.shape == match[1]})
    if match := re.fullmatch(r"What shape is the (\w+) object\?", asked):
        return _single({o.shape for o in scene if o.colour == match[1]})
    if asked == "How many objects are there?":
        return NUMBERS[len(scene)]
    if match := re.fullmatch(r"How many (\w+) objects are there\?", asked):
        return NUMBERS[sum(o.colour == match[1] for o in scene)]
    if match := re.fullmatch(r"(Where|What size) is the (\w+) (\w+)\?", asked):
        same = [o for o in scene if (o.colour, o.shape) == (match[2], match[3])]
        return _single({CELLS[o.cell] for o in same} if match[1] == "Where" else {o.size for o in same})
    if match := re.fullmatch(r"Is there a (\w+) (\w+)\?", asked):
        return "yes" if any((o.colour, o.shape) == match.groups() for o in scene) else "no"
    return describe(scene)


def _single(answers: set[str]) -> str:
    (answer,) = answers
    return answer
