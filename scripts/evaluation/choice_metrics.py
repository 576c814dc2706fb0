"""Metrics of correct and incorrect answers: exact match, and multiple choice by letter or by likelihood.

By letter (`mcq_letter`), the model must know the form of such questions. By likelihood, every choice is scored as the
answer, which also works for a model that has never seen lettered choices: `acc` takes the choice with the smallest
loss, its end token included; `acc_norm` divides the loss by the choice's length in characters, because longer texts are
less likely (the convention of lm-evaluation-harness and lmms-eval).
"""

import math
import re
import string
from collections.abc import Sequence

from scripts.evaluation.metric_registry import Vectors, metric
from scripts.evaluation.statistics import normalise
from scripts.evaluation.turns import Turn

LETTERS = string.ascii_uppercase
_AFTER_KEYWORD = re.compile(r"(?i)\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([a-z])\b")
_AT_START = re.compile(r"^\(?([A-Z])(?:[.:)]|$)")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_STANDALONE = re.compile(r"\b([B-HJ-Z]|A(?!\s+[a-z])|I(?!\s+[a-z']))\b")


@metric("exact_match", is_proportion=True)
def exact_match(turns: Sequence[Turn], *, ignore_case: bool = True, ignore_punctuation: bool = True) -> Vectors:
    """Whether the output equals a reference up to white space and, by default, case and trailing punctuation."""

    def comparable(text: str) -> str:
        if ignore_punctuation:
            text = normalise(text) if ignore_case else text.rstrip(string.punctuation + string.whitespace) or text
        return " ".join((text.lower() if ignore_case else text).split())

    return [
        (float(comparable(turn.output) in {comparable(each) for each in turn.references}), 1.0)
        if turn.references
        else None
        for turn in turns
    ]


def chosen_letter(output: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that an output names, by letter or else by text; `None` if it names none or several.

    A letter counts if it begins the output ("B", "(B)", "B. a dog"), follows "answer", "option" or "choice", is in
    brackets, or is the only letter that stands alone. The article in "A dog" is not a letter.
    """
    text, allowed = output.strip(), LETTERS[: len(choices)]
    equal = [index for index, choice in enumerate(choices) if normalise(choice) == normalise(text)]
    if len(equal) == 1:
        return equal[0]
    if (start := _AT_START.match(text)) and start[1] in allowed:
        return allowed.index(start[1])
    for pattern in (_AFTER_KEYWORD, _IN_BRACKETS, _STANDALONE):
        letters = {letter.upper() for letter in pattern.findall(text)} & set(allowed)
        if len(letters) == 1:
            return allowed.index(letters.pop())
        if letters:
            return None
    words = f" {_words(text)} "
    contained = [index for index, choice in enumerate(choices) if _words(choice) and f" {_words(choice)} " in words]
    return contained[0] if len(contained) == 1 else None


@metric("mcq_letter", is_proportion=True)
def mcq_letter(turns: Sequence[Turn]) -> Vectors:
    """Whether the output names the correct choice and no other."""
    return [
        (float(chosen_letter(turn.output, turn.choices) == turn.target), 1.0)
        if turn.choices and turn.target is not None
        else None
        for turn in turns
    ]


def most_likely_choice(losses: Sequence[float], choices: Sequence[str], normalised: bool = False) -> int:
    """The index of the choice with the smallest loss (nats), per character if `normalised`; a NaN never wins."""
    costs = [loss / max(len(choice), 1) if normalised else loss for loss, choice in zip(losses, choices, strict=True)]
    return min(range(len(costs)), key=lambda index: (math.isnan(costs[index]), costs[index]))


def _by_likelihood(turns: Sequence[Turn], normalised: bool) -> Vectors:
    return [
        (float(most_likely_choice(turn.losses, turn.choices, normalised) == turn.target), 1.0)
        if turn.losses and turn.choices and turn.target is not None
        else None
        for turn in turns
    ]


@metric("acc", is_proportion=True, needs="losses")
def accuracy(turns: Sequence[Turn]) -> Vectors:
    """Whether the most likely choice is the correct one."""
    return _by_likelihood(turns, normalised=False)


@metric("acc_norm", is_proportion=True, needs="losses")
def accuracy_per_character(turns: Sequence[Turn]) -> Vectors:
    """Whether the choice that is most likely per character is the correct one."""
    return _by_likelihood(turns, normalised=True)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))
