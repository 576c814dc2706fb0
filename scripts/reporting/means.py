"""Means with intervals of Student's t, in plain Python: the report needs a few hundred, and no library for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Mean:
    """A mean of `n` values and its interval (low, high), which is `None` for a single value."""

    n: int
    value: float
    interval: tuple[float, float] | None = None


def mean_of(values: Sequence[float], confidence: float) -> Mean:
    """The mean of independent values with the interval of Student's t. Needs at least one value."""
    centre = fmean(values)
    if len(values) == 1:
        return Mean(1, centre)
    margin = student_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Mean(len(values), centre, (centre - margin, centre + margin))


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile, for a probability above 0.5, of Student's t with `freedom` degrees of freedom; by bisection."""
    low, high = 0.0, 1.0
    while _student_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, freedom) < probability else (low, middle)
    return high


def _student_cdf(value: float, freedom: int) -> float:
    """Distribution function of Student's t at `value` >= 0: a finite sum in the angle atan(value / sqrt(freedom)).

    Fisher 1926; Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(value / math.sqrt(freedom))
    cosine, term, total = math.cos(angle) ** 2, 1.0, 0.0
    for step in range(freedom // 2 if freedom % 2 == 0 else (freedom - 1) // 2):
        total += term
        term *= cosine * ((2 * step + 1) / (2 * step + 2) if freedom % 2 == 0 else (2 * step + 2) / (2 * step + 3))
    if freedom % 2 == 0:
        return (1 + math.sin(angle) * total) / 2
    return 0.5 + (angle + math.sin(angle) * math.cos(angle) * total) / math.pi
