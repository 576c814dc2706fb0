"""Right or wrong: exact match, multiple choice by the letter that a model writes, and by likelihood.

By letter the model must know the form of such questions; by likelihood every choice is scored as its answer, so that a
model that has never seen a letter can be examined too. `acc` takes the likeliest whole answer, its end included;
`acc_norm` divides by the choice's length in characters, since longer texts are less likely for being long (the
convention of lm-evaluation-harness and lmms-eval).
"""

import math
import re
import string
from collections.abc import Sequence

from scripts.evaluation.metric_registry import Vectors, metric
from scripts.evaluation.statistics import normalise
from scripts.evaluation.turns import Turn

LETTERS = string.ascii_uppercase
_SAID = re.compile(r"(?i)\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*\(?([a-z])\b")
_BEGINS = re.compile(r"^\(?([A-Z])(?:[.:)]|$)")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_ALONE = re.compile(r"\b([B-HJ-Z]|A(?!\s+[a-z])|I(?!\s+[a-z']))\b")


@metric("exact_match", is_proportion=True)
def exact_match(turns: Sequence[Turn], *, ignore_case: bool = True, ignore_punctuation: bool = True) -> Vectors:
    """Whether the output equals a reference, up to spaces and, unless told otherwise, case and closing punctuation."""

    def form(text: str) -> str:
        if ignore_punctuation:
            text = normalise(text) if ignore_case else text.rstrip(string.punctuation + string.whitespace) or text
        return " ".join((text.lower() if ignore_case else text).split())

    return [
        (float(form(turn.output) in {form(each) for each in turn.references}), 1.0) if turn.references else None
        for turn in turns
    ]


def chosen_letter(output: str, choices: Sequence[str]) -> int | None:
    """Which of the choices an output names: by its letter, or else by its text; `None` if neither or several.

    A letter counts where it begins the output ("B", "(B)", "B. a dog"), follows "answer", "option" or "choice", stands
    in brackets, or is the only one that stands alone. So the article "A dog" names no choice.
    """
    text, allowed = output.strip(), LETTERS[: len(choices)]
    by_text = [place for place, choice in enumerate(choices) if normalise(choice) == normalise(text)]
    if len(by_text) == 1:
        return by_text[0]
    if (begin := _BEGINS.match(text)) and begin[1] in allowed:
        return allowed.index(begin[1])
    for pattern in (_SAID, _BRACKETED, _ALONE):
        found = {letter.upper() for letter in pattern.findall(text)} & set(allowed)
        if len(found) == 1:
            return allowed.index(found.pop())
        if found:
            return None
    words = f" {_words(text)} "
    held = [place for place, choice in enumerate(choices) if _words(choice) and f" {_words(choice)} " in words]
    return held[0] if len(held) == 1 else None


@metric("mcq_letter", is_proportion=True)
def mcq_letter(turns: Sequence[Turn]) -> Vectors:
    """Whether the output names the right choice, and no other."""
    return [
        (float(chosen_letter(turn.output, turn.choices) == turn.target), 1.0)
        if turn.choices and turn.target is not None
        else None
        for turn in turns
    ]


def likeliest(losses: Sequence[float], choices: Sequence[str], normalised: bool = False) -> int:
    """The place of the choice that costs the model the fewest nats, per character if `normalised`."""
    costs = [loss / max(len(choice), 1) if normalised else loss for loss, choice in zip(losses, choices, strict=True)]
    return min(range(len(costs)), key=lambda place: (math.isnan(costs[place]), costs[place]))


def _by_likelihood(turns: Sequence[Turn], normalised: bool) -> Vectors:
    return [
        (float(likeliest(turn.losses, turn.choices, normalised) == turn.target), 1.0)
        if turn.losses and turn.target is not None
        else None
        for turn in turns
    ]


@metric("acc", is_proportion=True, needs="losses")
def accuracy(turns: Sequence[Turn]) -> Vectors:
    """Whether the likeliest choice is the right one."""
    return _by_likelihood(turns, normalised=False)


@metric("acc_norm", is_proportion=True, needs="losses")
def accuracy_per_character(turns: Sequence[Turn]) -> Vectors:
    """Whether the choice that is likeliest per character is the right one."""
    return _by_likelihood(turns, normalised=True)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))
