"""Exact match, accuracy with Wilson intervals, paired differences of accuracies, and the chance level.

Pure functions of strings and counts. Accuracies lie between 0 and 1; an interval is a pair (low, high).
"""

import math
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any

_TRAILING = string.punctuation + string.whitespace


def normalise(answer: str) -> str:
    """Normalise an answer for comparison: lower case, single spaces, no punctuation at the end.

    An answer of punctuation alone keeps it, so that "?" never equals an empty answer.
    """
    text = " ".join(answer.lower().split())
    return text.rstrip(_TRAILING) or text


def is_correct(output: str, references: Iterable[str]) -> bool:
    """Whether an output equals one of the references after normalisation."""
    return normalise(output) in {normalise(reference) for reference in references}


def majority_accuracy(references: Sequence[str]) -> float:
    """The chance level: accuracy of always giving the most frequent reference. Needs at least one reference."""
    return max(Counter(map(normalise, references)).values()) / len(references)


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927): it stays within [0, 1] and has a width even at 0 and 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / n
    centre = share + z * z / (2 * n)
    margin = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n one bound is exact in theory and off by a rounding error in floating point.
    low = 0.0 if correct == 0 else (centre - margin) / scale
    high = 1.0 if correct == n else (centre + margin) / scale
    return low, high


def paired_difference(
    pairs: Sequence[tuple[bool, bool]], confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Difference of two accuracies on the same questions, with its interval (Newcombe 1998, method 10).

    `pairs` holds (first is correct, second is correct) per question. The interval combines the two Wilson intervals by
    their correlation; unlike a bootstrap it is not random and has a width even if every pair agrees.

    Returns:
        The first accuracy minus the second, and its interval.
    """
    n = len(pairs)
    both = sum(first and second for first, second in pairs)
    first_only = sum(first and not second for first, second in pairs)
    second_only = sum(second and not first for first, second in pairs)
    neither = n - both - first_only - second_only
    first, second = both + first_only, both + second_only

    phi = _correlation(both * neither - first_only * second_only, n, first * (n - first) * second * (n - second))
    share_first, share_second = first / n, second / n
    (low_first, high_first), (low_second, high_second) = wilson(first, n, confidence), wilson(second, n, confidence)
    below = _combined(share_first - low_first, high_second - share_second, phi)
    above = _combined(high_first - share_first, share_second - low_second, phi)
    difference = share_first - share_second
    return difference, (max(-1.0, difference - below), min(1.0, difference + above))


def _correlation(determinant: int, n: int, product: int) -> float:
    """Newcombe's phi of a paired 2 x 2 table: a positive determinant is reduced by n / 2, but never below zero."""
    if product == 0:
        return 0.0
    return (max(determinant - n / 2, 0) if determinant > 0 else determinant) / math.sqrt(product)


def _combined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))


def mean_loss(losses: Sequence[tuple[float, int]]) -> dict[str, Any] | None:
    """Mean loss per supervised token of conversations (summed loss in nats, supervised tokens), and its perplexity.

    `None` without tokens or if a loss is not finite (a diverged model), which JSON cannot hold.
    """
    tokens = sum(count for _, count in losses)
    mean = math.fsum(total for total, _ in losses) / tokens if tokens else math.nan
    if not math.isfinite(mean):
        return None
    # exp(710) overflows.
    return {"loss": mean, "perplexity": math.exp(min(mean, 700)), "tokens": tokens, "conversations": len(losses)}


def summarise(
    correct: Sequence[bool], chance: float | None, blanked: Sequence[bool] | None, confidence: float = 0.95
) -> dict[str, Any]:
    """The numbers of one row of the result table.

    Args:
        correct: whether each question was answered correctly.
        chance: chance level on the same questions; `None` if there is none.
        blanked: whether each question, in the same order, was answered correctly with blanked images; `None` if they
            were not asked.
        confidence: of the intervals, between 0 and 1.

    Returns:
        n, correct, accuracy, interval, chance and, with `blanked`, blanked {correct, accuracy, interval} and drop
        {value, interval} = accuracy minus blanked accuracy. Without questions, n and correct are 0 and the rest `None`.
    """
    if not correct:
        return {"n": 0, "correct": 0, "accuracy": None, "interval": None, "chance": None}
    result = {**_proportion(correct, confidence), "n": len(correct), "chance": chance}
    if blanked is not None:
        value, interval = paired_difference(list(zip(correct, blanked, strict=True)), confidence)
        result["blanked"] = _proportion(blanked, confidence)
        result["drop"] = {"value": value, "interval": list(interval)}
    return result


def _proportion(correct: Sequence[bool], confidence: float) -> dict[str, Any]:
    count = sum(correct)
    interval = list(wilson(count, len(correct), confidence))
    return {"correct": count, "accuracy": count / len(correct), "interval": interval}
