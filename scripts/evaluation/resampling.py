"""Bootstrap intervals, and a paired test of two systems on the same questions.

Units are resampled: all turns of a conversation, or all versions of a question, together, because they depend on each
other. A unit is the sum of the vectors of its turns (see metric_registry.py); arrays of units have shape (units,
width). The generator has a constant seed, so the same answers give the same interval.

The test is the approximate randomisation test (Noreen 1989): if two systems were equally good, swapping their answers
to any unit would not matter; p is the share of random swaps with a difference at least as large as the observed one.
With few units all swaps are enumerated and p is exact; for proportions it then equals McNemar's exact test.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SAMPLES = 1000
SWAPS = 9999
_EXACT_UNITS = 13
_SEED = 20230925
_BLOCK = 1 << 22

Value = Callable[[np.ndarray], float]


def bootstrap(units: np.ndarray, value: Value, confidence: float, samples: int = SAMPLES) -> tuple[float, float] | None:
    """Percentile interval of a score.

    Args:
        units: (units, width).
        value: the score of a summed vector (width,).
        confidence: between 0 and 1.
        samples: bootstrap samples.

    Returns:
        (low, high), or `None` if the score is not finite for any sample.
    """
    return _percentiles([value(total) for total in _bootstrap_sums(units, samples)], confidence)


def paired(
    first: np.ndarray, second: np.ndarray, value: Value, confidence: float, samples: int = SAMPLES, swaps: int = SWAPS
) -> dict[str, Any]:
    """Compare two systems on the same units.

    Args:
        first: vectors of one system, (units, width).
        second: vectors of the other system, (units, width), in the same order.
        value: the score of a summed vector (width,).
        confidence: of the interval, between 0 and 1.
        samples: bootstrap samples.
        swaps: random swaps of the test, where not all are enumerated.

    Returns:
        {"difference", "interval", "p"}: first minus second, its bootstrap interval (the same samples for both), and the
        two-sided p-value of the randomisation test.
    """
    both = np.concatenate((first, second), axis=1)
    width = first.shape[1]
    observed = value(first.sum(0)) - value(second.sum(0))
    differences = [value(total[:width]) - value(total[width:]) for total in _bootstrap_sums(both, samples)]
    extreme, tried = 0, 0
    # A swap that changes nothing must count in spite of rounding.
    limit = abs(observed) - 1e-12 * max(1.0, abs(observed))
    for swapped in _swaps(len(first), swaps):
        moved = swapped @ (second - first)
        ones, others = first.sum(0) + moved, second.sum(0) - moved
        for one, other in zip(ones, others, strict=True):
            extreme += abs(value(one) - value(other)) >= limit
            tried += 1
    exact = len(first) <= _EXACT_UNITS
    p = extreme / tried if exact else (extreme + 1) / (tried + 1)
    return {"difference": observed, "interval": _percentiles(differences, confidence), "p": p}


def _bootstrap_sums(units: np.ndarray, samples: int) -> np.ndarray:
    """The sums (samples, width) of bootstrap samples: as many units as there are, drawn with replacement."""
    generator, n = np.random.default_rng(_SEED), len(units)
    block = max(1, _BLOCK // n)
    parts = []
    for start in range(0, samples, block):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(block, samples - start))
        parts.append(counts @ units)
    return np.concatenate(parts)


def _swaps(n: int, swaps: int) -> Iterator[np.ndarray]:
    """Blocks (rows, n) with 1 where a unit is swapped: all combinations for few units, otherwise random ones."""
    if n <= _EXACT_UNITS:
        yield (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return
    generator, block = np.random.default_rng(_SEED), max(1, _BLOCK // n)
    for start in range(0, swaps, block):
        yield generator.integers(0, 2, size=(min(block, swaps - start), n))


def _percentiles(values: list[float], confidence: float) -> tuple[float, float] | None:
    finite = np.array([each for each in values if np.isfinite(each)])
    if not len(finite):
        return None
    tail = 50 * (1 - confidence)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)
