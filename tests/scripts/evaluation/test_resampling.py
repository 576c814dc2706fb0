"""Bootstrap intervals and the paired test, against theory and exact tests."""

import math

import numpy as np
import pytest

from scripts.evaluation.metric_registry import ratio
from scripts.evaluation.resampling import bootstrap, paired


def vectors(points) -> np.ndarray:
    return np.stack([points, np.ones(len(points))], axis=1).astype(float)


def test_the_interval_of_a_mean_agrees_with_theory():
    points = np.random.default_rng(3).normal(2.0, 5.0, 2000)
    low, high = bootstrap(vectors(points), ratio, 0.95)
    margin = 1.96 * points.std() / math.sqrt(len(points))
    assert (low + high) / 2 == pytest.approx(points.mean(), abs=0.1 * margin)
    assert (high - low) / 2 == pytest.approx(margin, rel=0.1)
    assert bootstrap(vectors(points), ratio, 0.95) == (low, high)
    inner = bootstrap(vectors(points), ratio, 0.5)
    assert low < inner[0] < inner[1] < high


def test_units_are_resampled_as_a_whole():
    # Ten conversations of ten equal turns: as much information as ten answers, not as a hundred.
    points = np.array([1, 0] * 5)
    alone = bootstrap(vectors(np.repeat(points, 10)), ratio, 0.95)
    together = bootstrap(10 * vectors(points), ratio, 0.95)
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided test of discordant pairs."""
    n, k = first_only + second_only, min(first_only, second_only)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


@pytest.mark.parametrize(("first_only", "second_only"), [(5, 1), (4, 0), (3, 3), (0, 0)])
def test_few_pairs_give_the_exact_test_of_mcnemar(first_only, second_only):
    first = [1] * first_only + [0] * second_only + [1, 0]
    second = [0] * first_only + [1] * second_only + [1, 0]
    result = paired(vectors(np.array(first)), vectors(np.array(second)), ratio, 0.95)
    assert result["p"] == pytest.approx(mcnemar(first_only, second_only))
    assert result["difference"] == pytest.approx((first_only - second_only) / len(first))


def test_many_pairs_approximate_the_exact_test():
    first, second = np.array([1] * 30 + [0] * 14 + [1] * 100), np.array([0] * 30 + [1] * 14 + [1] * 100)
    result = paired(vectors(first), vectors(second), ratio, 0.95)
    assert result["p"] == pytest.approx(mcnemar(30, 14), abs=0.01)
    low, high = result["interval"]
    assert 0 < low < result["difference"] < high
    swapped = paired(vectors(second), vectors(first), ratio, 0.95)
    assert swapped["difference"] == -result["difference"] and swapped["p"] == pytest.approx(result["p"], abs=0.01)


def test_without_a_value_there_is_no_interval():
    assert bootstrap(np.zeros((3, 2)), ratio, 0.95) is None
