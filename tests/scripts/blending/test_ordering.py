"""The order of an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.blending.ordering import shuffle, sort_batches
from scripts.common.errors import UserError


def keys(n, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def test_without_late_datasets_it_is_the_order_of_the_keys():
    k = keys(50)
    assert shuffle(k, np.zeros(50), 8, [""] * 50).tolist() == np.argsort(k).tolist()


@settings(deadline=None)
@given(st.integers(0, 99), st.sampled_from([1, 3, 10]), st.floats(0.01, 0.4), st.floats(0.41, 0.7))
def test_moments_are_kept_and_the_order_within_a_dataset_is_that_of_its_keys(seed, batch, first, second):
    k = keys(300, seed)
    starts = np.repeat([0.0, first, second], [240, 30, 30])
    order = shuffle(k, starts, batch, [""] * 300)
    batched = sort_batches(order, keys(300, seed + 1).astype(np.int64), batch)
    position = np.empty(300, int)
    position[batched] = np.arange(300)
    for moment in (first, second):
        assert position[starts == moment].min() >= moment * 300 - 1e-6
    for moment in (0.0, first, second):
        mine = order[starts[order] == moment]
        assert (np.diff(k[mine].astype(float)) >= 0).all()


def test_a_late_dataset_is_spread_over_the_rest():
    starts = np.repeat([0.0, 0.5], [6000, 2000])
    order = shuffle(keys(8000), starts, 1, [""] * 8000)
    late = np.flatnonzero(starts[order] > 0)
    # 4,000 places are left for 2,000 late and 2,000 early ones: half in every part of them.
    counts, _ = np.histogram(late, bins=4, range=(4000, 8000))
    assert late[0] >= 4000
    assert all(abs(count - 500) < 70 for count in counts)


def test_a_moment_is_rounded_up_to_whole_batches():
    starts = np.repeat([0.0, 0.5], [7, 5])
    order = shuffle(keys(12), starts, 7, [""] * 12)
    assert (starts[order[:7]] == 0).all()


def test_rounding_errors_do_not_add_a_batch():
    """0.55 * 100 is a little more than 55, and the early ones fill exactly as many places."""
    starts = np.repeat([0.0, 0.55], [55, 45])
    order = shuffle(keys(100), starts, 5, [""] * 100)
    assert (starts[order] > 0).tolist() == [False] * 55 + [True] * 45


def test_a_late_one_with_the_smallest_key_does_not_come_before_its_moment():
    """Its time is then that of the last one before the moment."""
    k = np.array([0, 1 << 61, 1 << 62, 1 << 63], np.uint64)
    assert shuffle(k, np.array([0.5, 0, 0, 0]), 1, [""] * 4).tolist() == [1, 2, 0, 3]


def test_too_late_is_refused_with_the_name():
    with pytest.raises(UserError, match=r"d1 starts at 0.5 .* after 6 conversations.* only 4"):
        shuffle(keys(10), np.repeat([0.0, 0.5], [4, 6]), 3, ["d0"] * 4 + ["d1"] * 6)


def test_batches_are_sorted_by_falling_cost_and_keep_their_members():
    order, costs = np.array([4, 0, 3, 1, 2, 5, 6]), np.array([10, 30, 20, 20, 50, 70, 1])
    assert sort_batches(order, costs, 3).tolist() == [4, 3, 0, 5, 1, 2, 6]
    assert sort_batches(order, costs, 1).tolist() == order.tolist()
