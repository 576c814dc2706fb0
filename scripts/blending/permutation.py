"""Permutations as single integers, so that a plan stores an order of rounds like any other choice.

The rank of a permutation is its index in the lexicographic list of all of that size, computed in the factorial number
system (Lehmer code).
"""

from math import factorial

import numpy as np


def unrank_permutation(rank: int, size: int) -> list[int]:
    """The permutation of 0..size-1 with this rank in [0, size!); rank 0 is ascending.

    Raises:
        ValueError: the rank is out of range.
    """
    if not 0 <= rank < factorial(size):
        raise ValueError(f"rank {rank} is not below {size}!")
    left, order = list(range(size)), []
    for n_left in range(size, 0, -1):
        index, rank = divmod(rank, factorial(n_left - 1))
        order.append(left.pop(index))
    return order


def unrank_permutations(ranks: np.ndarray, size: int) -> np.ndarray:
    """`unrank_permutation` for many ranks (n,): (n, size)."""
    left = np.tile(np.arange(size), (len(ranks), 1))
    orders = np.empty_like(left)
    for n_left in range(size, 0, -1):
        index, ranks = np.divmod(ranks, factorial(n_left - 1))
        taken = np.arange(n_left) == index[:, None]
        orders[:, size - n_left] = left[taken]
        left = left[~taken].reshape(len(left), n_left - 1)
    return orders


def rank_permutation(order: list[int]) -> int:
    """The rank of a permutation: the inverse of `unrank_permutation`."""
    left, rank = sorted(order), 0
    for value in order:
        rank = rank * len(left) + left.index(value)
        left.remove(value)
    return rank
