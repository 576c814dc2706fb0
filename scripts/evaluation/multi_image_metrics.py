"""What only several images and several rounds can show: which image, how far back, in which order, in which words.

    which_image         answers that say which image ("the second image", "Image 2", "IMAGE#2"): is it that one?
    recall              exact match by how many rounds ago the image in question was shown: recall@0, recall@1, ...
    order_sensitivity   versions of a question that differ in the order of their images: share of questions whose
                        verdict depends on it. 0 is best
    all_versions        share of such questions that are right in every version
    consistency         versions in other words: share of pairs of versions with the same answer, right or wrong

The last three compare turns that a suite has put together (`cluster`), round by round.
"""

import re
from collections.abc import Sequence
from itertools import combinations

from scripts.evaluation.metric_registry import Vectors, metric
from scripts.evaluation.statistics import is_correct, normalise
from scripts.evaluation.turns import Turn

_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_IMAGE = r"(?:image|picture|photo|photograph|img|figure)"
_COUNTED = re.compile(rf"\b{_IMAGE}s?\s*(?:#|no\.?|number)?\s*(\d+)", re.IGNORECASE)
_PLACE = rf"(?:{'|'.join(_ORDINALS)}|last)"
_NAMED = re.compile(
    rf"\b({_PLACE})\b(?=(?:\s+(?:and|or)\s+(?:the\s+)?{_PLACE})*(?:\s+{_IMAGE}s?\b|\s+one\b|\W*$))", re.IGNORECASE
)


def image_numbers(text: str, images: int) -> set[int]:
    """The numbers (from 1) of the images that a text names, of `images` in view; "the last image" is that many."""
    found = {int(number) for number in _COUNTED.findall(text)}
    for word in _NAMED.findall(text):
        found.add(images if word.lower() == "last" else _ORDINALS.index(word.lower()) + 1)
    return {number for number in found if 1 <= number <= images}


@metric("which_image", is_proportion=True)
def which_image(turns: Sequence[Turn]) -> Vectors:
    """Whether the output names the image that the first reference names; questions about nothing else count."""

    def judge(turn: Turn) -> tuple[float, float] | None:
        wanted = image_numbers(turn.references[0], len(turn.images)) if turn.references else set()
        return (float(image_numbers(turn.output, len(turn.images)) == wanted), 1.0) if wanted else None

    return [judge(turn) for turn in turns]


def rounds_ago(turn: Turn) -> int | None:
    """How many rounds before this one the image in question was shown; `None` without an image.

    The image in question is the earliest that the question names by its number, or else the one shown last.
    """
    if not turn.shown:
        return None
    named = image_numbers(turn.question, len(turn.shown))
    return turn.round - (min(turn.shown[number - 1] for number in named) if named else turn.shown[-1])


@metric("recall", is_proportion=True)
def recall(turns: Sequence[Turn]) -> dict[str, Vectors]:
    """Exact match by `rounds_ago`."""
    ago = [rounds_ago(turn) if turn.references else None for turn in turns]
    return {
        f"@{lag}": [
            (float(is_correct(turn.output, turn.references)), 1.0) if lag == each else None
            for turn, each in zip(turns, ago, strict=True)
        ]
        for lag in sorted({each for each in ago if each is not None})
    }


@metric("order_sensitivity", is_proportion=True, higher_is_better=False)
def order_sensitivity(turns: Sequence[Turn]) -> Vectors:
    """Share of questions that are right in one version and wrong in another."""
    return _by_versions(turns, lambda group: (float(len(set(_verdicts(group))) > 1), 1.0), judged=True)


@metric("all_versions", is_proportion=True)
def all_versions(turns: Sequence[Turn]) -> Vectors:
    """Share of questions that are right in every version."""
    return _by_versions(turns, lambda group: (float(all(_verdicts(group))), 1.0), judged=True)


@metric("consistency")
def consistency(turns: Sequence[Turn]) -> Vectors:
    """Share of pairs of versions with the same answer; every question weighs the same, however many versions it has."""

    def agreement(group: list[Turn]) -> tuple[float, float]:
        pairs = list(combinations([normalise(turn.output) for turn in group], 2))
        return sum(one == other for one, other in pairs) / len(pairs), 1.0

    return _by_versions(turns, agreement, judged=False)


def _verdicts(group: Sequence[Turn]) -> list[bool]:
    return [is_correct(turn.output, turn.references) for turn in group]


def _by_versions(turns: Sequence[Turn], vector, judged: bool) -> Vectors:
    """Give the vector of every group of at least two versions to its first turn; `judged` ones need references."""
    groups: dict[tuple[str, int], list[int]] = {}
    for place, turn in enumerate(turns):
        if turn.cluster is not None and (turn.references or not judged):
            groups.setdefault((turn.cluster, turn.round), []).append(place)
    result: Vectors = [None] * len(turns)
    for places in groups.values():
        if len(places) > 1:
            result[places[0]] = vector([turns[place] for place in places])
    return result
