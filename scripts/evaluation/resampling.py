"""How sure a number is: bootstrap intervals, and a paired test of two systems on the same questions.

What is drawn are units: all turns of a conversation, and all versions of a question, at once, since they depend on each
other. Units come as the sum of their turns' vectors (see registry.py), (units, width). The generator is seeded with a
constant: the same answers give the same interval.

The test is the approximate randomisation test (Noreen 1989): if two systems were equally good, swapping their answers
to any unit would change nothing; p is the share of swaps that set them apart at least as far as they are. With few
units every way of swapping is tried, and p is exact. For right and wrong it equals McNemar's exact test.
"""

from collections.abc import Callable

import numpy as np

SAMPLES = 1000
SWAPS = 9999
_EXACT_UNITS = 13
_SEED = 20230925
_BLOCK = 1 << 22

Value = Callable[[np.ndarray], float]


def bootstrap(units: np.ndarray, value: Value, confidence: float, samples: int = SAMPLES) -> tuple[float, float] | None:
    """Percentile interval of `value` of the summed units (units, width); `None` where no draw has a value."""
    return _percentiles([value(total) for total in _draws(units, samples)], confidence)


def paired(
    first: np.ndarray, second: np.ndarray, value: Value, confidence: float, samples: int = SAMPLES, swaps: int = SWAPS
) -> dict:
    """Compare two systems by their vectors (units, width) on the same units.

    Returns {"difference", "interval", "p"}: first minus second, its bootstrap interval (the same draws for both), and
    the two-sided p-value of the randomisation test.
    """
    both = np.concatenate((first, second), axis=1)
    width = first.shape[1]
    observed = value(first.sum(0)) - value(second.sum(0))
    drawn = [value(total[:width]) - value(total[width:]) for total in _draws(both, samples)]
    at_least, tried = 0, 0
    # Rounding must not tell a swap that changes nothing from what was observed.
    limit = abs(observed) - 1e-12 * max(1.0, abs(observed))
    for swapped in _swaps(len(first), swaps):
        moved = swapped @ (second - first)
        ones, others = first.sum(0) + moved, second.sum(0) - moved
        for one, other in zip(ones, others, strict=True):
            at_least += abs(value(one) - value(other)) >= limit
            tried += 1
    exact = len(first) <= _EXACT_UNITS
    p = at_least / tried if exact else (at_least + 1) / (tried + 1)
    return {"difference": observed, "interval": _percentiles(drawn, confidence), "p": p}


def _draws(units: np.ndarray, samples: int) -> np.ndarray:
    """Sums (samples, width) of as many units as there are, drawn with replacement."""
    generator, n = np.random.default_rng(_SEED), len(units)
    block = max(1, _BLOCK // n)
    parts = []
    for start in range(0, samples, block):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(block, samples - start))
        parts.append(counts @ units)
    return np.concatenate(parts)


def _swaps(n: int, swaps: int):
    """Blocks (some, n) of ones where a unit is swapped: every way for few units, or else random ones."""
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
