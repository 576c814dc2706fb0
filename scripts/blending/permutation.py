"""Orders as single integers, so that a plan stores an order of rounds like any other choice.

The rank of an order is its place in the lexicographic list of all orders, written in the factorial number system
(Lehmer code).
"""

from math import factorial

import numpy as np


def unrank_permutation(rank: int, size: int) -> list[int]:
    """The order of 0..size-1 with this rank in [0, size!); rank 0 is ascending."""
    if not 0 <= rank < factorial(size):
        raise ValueError(f"rank {rank} is not below {size}!")
    left, order = list(range(size)), []
    for place in range(size, 0, -1):
        index, rank = divmod(rank, factorial(place - 1))
        order.append(left.pop(index))
    return order


def unrank_permutations(ranks: np.ndarray, size: int) -> np.ndarray:
    """`unrank_permutation` for many ranks (n,): (n, size)."""
    left = np.tile(np.arange(size), (len(ranks), 1))
    orders = np.empty_like(left)
    for place in range(size, 0, -1):
        index, ranks = np.divmod(ranks, factorial(place - 1))
        taken = np.arange(place) == index[:, None]
        orders[:, size - place] = left[taken]
        left = left[~taken].reshape(len(left), place - 1)
    return orders


def rank_permutation(order: list[int]) -> int:
    """The rank of an order: the inverse of `unrank_permutation`."""
    left, rank = sorted(order), 0
    for value in order:
        rank = rank * len(left) + left.index(value)
        left.remove(value)
    return rank
