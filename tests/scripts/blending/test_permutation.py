"""Ranks and orders are one to one."""

from itertools import permutations
from math import factorial

import numpy as np
import pytest

from scripts.blending.permutation import rank_permutation, unrank_permutation, unrank_permutations


@pytest.mark.parametrize("size", range(7))
def test_ranks_list_all_orders_lexicographically(size):
    orders = [tuple(unrank_permutation(rank, size)) for rank in range(factorial(size))]
    assert orders == list(permutations(range(size)))
    assert [rank_permutation(list(order)) for order in orders] == list(range(factorial(size)))
    assert unrank_permutations(np.arange(factorial(size)), size).tolist() == [list(order) for order in orders]


def test_the_largest_order_fits_an_int64():
    last = factorial(20) - 1
    assert unrank_permutation(last, 20) == list(range(19, -1, -1))
    assert rank_permutation(unrank_permutation(last, 20)) == last < 2**63
    assert unrank_permutations(np.array([last]), 20).tolist() == [unrank_permutation(last, 20)]


@pytest.mark.parametrize("rank", [-1, 6])
def test_a_rank_outside_is_refused(rank):
    with pytest.raises(ValueError, match="not below 3!"):
        unrank_permutation(rank, 3)
