"""Draws are hashes that anyone can compute."""

import hashlib
import math

import numpy as np
import pytest

from scripts.blending.randomness import Draws


def test_a_draw_is_the_documented_hash():
    draws = Draws(seed=5, epoch=3)
    sizes = np.array([1, 2, 3, 53, 2**31, 2**32 + 5, 2**61, math.factorial(20)] * 40)
    uids = [b"llava:%d" % number for number in range(len(sizes))]
    copies = np.arange(len(sizes)) % 3
    messages = [b"%b#%d|llava order" % pair for pair in zip(uids, copies.tolist(), strict=True)]
    values = [int(hashlib.blake2b(text, key=b"5:3", digest_size=16).hexdigest(), 16) for text in messages]
    keys = draws.keys(uids, copies, "llava order")
    assert keys.dtype == np.uint64 and keys.tolist() == [value >> 64 for value in values]
    expected = [value * size // 2**128 for value, size in zip(values, sizes.tolist(), strict=True)]
    assert draws.below(sizes, uids, copies, "llava order").tolist() == expected
    # Fixed for ever: changing it would change every published run.
    assert draws.keys([b"llava:7"], np.array([2]), "llava order").tolist() == [822887304767384980]


def test_each_draw_may_have_a_purpose_of_its_own():
    draws, uids = Draws(1, 0), [b"a", b"a", "é#1".encode()]
    together = draws.keys(uids, np.zeros(3, int), iter([b"x", b"y", b"x"]))
    assert together.tolist() == [draws.keys([u], [0], p).item() for u, p in zip(uids, "xyx", strict=True)]


@pytest.mark.parametrize("other", [Draws(0, 1), Draws(1, 0), Draws(10, 0)])
def test_seed_and_epoch_change_every_draw(other):
    keys = Draws(0, 0).keys([b"a"] * 100, range(100), "x")
    assert not set(keys.tolist()) & set(other.keys([b"a"] * 100, range(100), "x").tolist())


def test_numbers_below_are_in_range_and_even():
    draws = Draws(0, 0)
    values = draws.below(np.full(6000, 3), [b"u%d" % i for i in range(6000)], np.zeros(6000, int), "p").tolist()
    assert set(values) == {0, 1, 2}
    # Three standard deviations of a fair die with three faces.
    assert all(abs(values.count(face) - 2000) < 3 * (6000 * 2 / 9) ** 0.5 for face in range(3))


def test_numbers_below_a_huge_size_reach_its_top():
    size = 2**61
    values = Draws(0, 0).below(np.full(200, size), [b"u%d" % i for i in range(200)], np.zeros(200, int), "p").tolist()
    assert max(values) > size * 0.97 and min(values) < size * 0.03
