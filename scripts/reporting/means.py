"""Means with the interval of Student's t, in plain Python: the report needs a few hundred of them and no library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Mean:
    """A mean and its interval; both bounds are None where there is one value alone."""

    n: int
    value: float
    low: float | None = None
    high: float | None = None


def mean(values: Sequence[float], confidence: float) -> Mean | None:
    """The mean of independent values with the interval of Student's t; None without any."""
    if not values:
        return None
    centre = fmean(values)
    if len(values) == 1:
        return Mean(1, centre)
    margin = student_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Mean(len(values), centre, centre - margin, centre + margin)


def student_quantile(share: float, freedom: int) -> float:
    """The value below which lies `share` (above one half) of Student's t with `freedom` degrees of freedom."""
    low, high = 0.0, 1.0
    while _student_below(high, freedom) < share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_below(middle, freedom) < share else (low, middle)
    return high


def _student_below(value: float, freedom: int) -> float:
    """Share of Student's t below `value` >= 0: a finite sum in the angle of value / sqrt(freedom) (Fisher 1926)."""
    angle = math.atan(value / math.sqrt(freedom))
    cosine, term, total = math.cos(angle) ** 2, 1.0, 0.0
    for step in range(freedom // 2 if freedom % 2 == 0 else (freedom - 1) // 2):
        total += term
        term *= cosine * ((2 * step + 1) / (2 * step + 2) if freedom % 2 == 0 else (2 * step + 2) / (2 * step + 3))
    if freedom % 2 == 0:
        return (1 + math.sin(angle) * total) / 2
    return 0.5 + (angle + math.sin(angle) * math.cos(angle) * total) / math.pi
