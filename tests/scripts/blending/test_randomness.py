"""Draws are hashes that anyone can compute."""

import hashlib
import math

import numpy as np
import pytest

from scripts.blending.randomness import Draws


def test_a_draw_is_the_documented_hash():
    digest = hashlib.blake2b(b"llava:7#2|llava order", key=b"5:3", digest_size=16).hexdigest()
    value = int(digest, 16)
    draws = Draws(seed=5, epoch=3)
    assert draws.key(b"llava:7", 2, "llava order") == value >> 64
    assert draws.below(1000, b"llava:7", 2, "llava order") == value * 1000 // 2**128
    # Fixed for ever: changing it would change every published run.
    assert draws.key(b"llava:7", 2, "llava order") == 822887304767384980


def test_keys_are_the_single_keys():
    draws = Draws(1, 0)
    pairs = [(b"a", 0), (b"a", 1), ("é#1".encode(), 0)]
    keys = draws.keys(*zip(*pairs, strict=True), "order")
    assert keys.dtype == np.uint64
    assert keys.tolist() == [draws.key(uid, copy, "order") for uid, copy in pairs]


def test_many_numbers_are_the_single_ones():
    draws = Draws(5, 3)
    sizes = np.array([1, 2, 3, 53, 2**31, 2**32 + 5, 2**61, math.factorial(20)] * 40)
    uids = [b"u%d" % i for i in range(len(sizes))]
    found = draws.many_below(sizes, uids, np.zeros(len(sizes), int), "p")
    assert found.tolist() == [draws.below(size, uid, 0, "p") for size, uid in zip(sizes.tolist(), uids, strict=True)]


@pytest.mark.parametrize("other", [Draws(0, 1), Draws(1, 0), Draws(10, 0)])
def test_seed_and_epoch_change_every_draw(other):
    keys = Draws(0, 0).keys([b"a"] * 100, range(100), "x")
    assert not set(keys.tolist()) & set(other.keys([b"a"] * 100, range(100), "x").tolist())


def test_numbers_below_are_in_range_and_even():
    draws = Draws(0, 0)
    values = [draws.below(3, b"u%d" % i, 0, "p") for i in range(6000)]
    assert set(values) == {0, 1, 2}
    # Three standard deviations of a fair die with three faces.
    assert all(abs(values.count(face) - 2000) < 3 * (6000 * 2 / 9) ** 0.5 for face in range(3))


def test_numbers_below_a_huge_size_reach_its_top():
    size = 2**61
    values = [Draws(0, 0).below(size, b"u%d" % i, 0, "p") for i in range(200)]
    assert max(values) > size * 0.97 and min(values) < size * 0.03
