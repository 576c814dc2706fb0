"""Metrics of questions about several images and over several rounds.

    which_image         answers that name an image ("the second image", "Image 2", "IMAGE#2"): is it the correct one?
    recall              exact match by how many rounds ago the image in question was shown: recall@0, recall@1, ...
    order_sensitivity   versions of a question with their images in another order: share of questions that are answered
                        correctly in one version and incorrectly in another. 0 is best
    all_versions        share of such questions that are answered correctly in every version
    consistency         versions of a question in other words: share of pairs of versions with the same answer

The last three compare turns of the same `cluster` of a suite, round by round.
"""

import re
from collections.abc import Callable, Sequence
from itertools import combinations

from scripts.evaluation.metric_registry import Vectors, metric
from scripts.evaluation.statistics import is_correct, normalise
from scripts.evaluation.turns import Turn

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_IMAGE = r"(?:image|picture|photo|photograph|img|figure)"
_BY_NUMBER = re.compile(rf"\b{_IMAGE}s?\s*(?:#|no\.?|number)?\s*(\d+)", re.IGNORECASE)
_ORDINAL = rf"(?:{'|'.join(_ORDINALS)}|last)"
_BY_ORDINAL = re.compile(
    rf"\b({_ORDINAL})\b(?=(?:\s+(?:and|or)\s+(?:the\s+)?{_ORDINAL})*(?:\s+{_IMAGE}s?\b|\s+one\b|\W*$))", re.IGNORECASE
)


def image_numbers(text: str, images: int) -> set[int]:
    """The numbers (from 1) of the images that a text names; `images` is how many there are ("the last image")."""
    numbers = {int(number) for number in _BY_NUMBER.findall(text)}
    for word in _BY_ORDINAL.findall(text):
        numbers.add(images if word.lower() == "last" else _ORDINALS.index(word.lower()) + 1)
    return {number for number in numbers if 1 <= number <= images}


@metric("which_image", is_proportion=True)
def which_image(turns: Sequence[Turn]) -> Vectors:
    """Whether the output names the same images as the first reference. Turns without a named image do not count."""

    def score(turn: Turn) -> tuple[float, float] | None:
        expected = image_numbers(turn.references[0], len(turn.images)) if turn.references else set()
        return (float(image_numbers(turn.output, len(turn.images)) == expected), 1.0) if expected else None

    return [score(turn) for turn in turns]


def rounds_ago(turn: Turn) -> int | None:
    """How many rounds before this one the image in question was shown; `None` without an image.

    The image in question is the earliest one that the question names, or else the one that was shown last.
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
    """Share of questions that are answered correctly in one version and incorrectly in another."""
    return _by_versions(turns, lambda group: (float(len(set(_correct(group))) > 1), 1.0), need_references=True)


@metric("all_versions", is_proportion=True)
def all_versions(turns: Sequence[Turn]) -> Vectors:
    """Share of questions that are answered correctly in every version."""
    return _by_versions(turns, lambda group: (float(all(_correct(group))), 1.0), need_references=True)


@metric("consistency")
def consistency(turns: Sequence[Turn]) -> Vectors:
    """Share of pairs of versions with the same answer; every question has the same weight."""

    def agreement(group: list[Turn]) -> tuple[float, float]:
        pairs = list(combinations([normalise(turn.output) for turn in group], 2))
        return sum(one == other for one, other in pairs) / len(pairs), 1.0

    return _by_versions(turns, agreement, need_references=False)


def _correct(group: Sequence[Turn]) -> list[bool]:
    return [is_correct(turn.output, turn.references) for turn in group]


def _by_versions(
    turns: Sequence[Turn], vector: Callable[[list[Turn]], tuple[float, float]], need_references: bool
) -> Vectors:
    """The vector of every group of at least two versions, at the index of its first turn."""
    groups: dict[tuple[str, int], list[int]] = {}
    for index, turn in enumerate(turns):
        if turn.cluster is not None and (turn.references or not need_references):
            groups.setdefault((turn.cluster, turn.round), []).append(index)
    result: Vectors = [None] * len(turns)
    for indices in groups.values():
        if len(indices) > 1:
            result[indices[0]] = vector([turns[index] for index in indices])
    return result
