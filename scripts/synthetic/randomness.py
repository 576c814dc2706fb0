"""Random numbers that depend on a key, not on earlier random numbers.

Every scene, question and caption has its own stream, keyed by the seed, a purpose and a number. So image 17 is the same
in a world of 20 and of 20,000 images, and a new kind of question does not change the images.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
_WORDS = 8
_SCALE = 2.0**-64


class RandomStream:
    """A stream of random numbers: blake2b in counter mode, the same on every machine and Python version.

    Args:
        seed: of the world.
        purpose: the use of the numbers, and the item they are for.
    """

    def __init__(self, seed: int, *purpose: str | int) -> None:
        self._hash = hashlib.blake2b("|".join(map(str, (seed, *purpose))).encode())
        self._counter = 0
        self._words: list[int] = []

    def unit(self) -> float:
        """A number in [0, 1)."""
        if not self._words:
            block = self._hash.copy()
            block.update(b"#%d" % self._counter)
            digest = block.digest()
            self._counter += 1
            self._words = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_WORDS)]
        # 53 bits are exact in a float, so that the result is never rounded up to 1.
        return (self._words.pop() >> 11 << 11) * _SCALE

    def below(self, limit: int) -> int:
        """An integer in [0, limit)."""
        return int(self.unit() * limit)

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def pick(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All of `items` in a random order."""
        order = list(items)
        for end in range(len(order) - 1, 0, -1):
            other = self.below(end + 1)
            order[end], order[other] = order[other], order[end]
        return order

    def times(self, rate: float) -> int:
        """A random count with mean `rate`: its integer part, plus one with the probability of its fraction."""
        return int(rate) + (self.unit() < rate % 1)
