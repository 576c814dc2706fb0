"""Randomness without a generator: every draw is a hash of what it is for.

A draw belongs to a record (its uid), a copy of it and a purpose, under a key of seed and epoch:

    blake2b(f"{uid}#{copy}|{purpose}", key=f"{seed}:{epoch}", digest_size=16)

So there is no order of draws and no state. Adding, removing or changing one dataset leaves every draw of the others as
it was, and shuffling is sorting by such hashes.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

_BITS = 128


class Draws:
    """All draws of one epoch of one blend."""

    def __init__(self, seed: int, epoch: int):
        # A keyed state is copied for every draw: hashing the key once instead of a million times.
        self._keyed = hashlib.blake2b(key=f"{seed}:{epoch}".encode(), digest_size=_BITS // 8)

    def below(self, size: int, uid: str, copy: int, purpose: str) -> int:
        """A whole number in [0, size), uniform to within 2**-64 for every size up to 2**64."""
        return int.from_bytes(self._digest(uid, copy, purpose), "big") * size >> _BITS

    def key(self, uid: str, copy: int, purpose: str) -> int:
        """A number of 64 bits to sort by."""
        return int.from_bytes(self._digest(uid, copy, purpose)[:8], "big")

    def keys(self, uids: Iterable[str], copies: Iterable[int], purpose: str) -> np.ndarray:
        """`key` for many pairs of uid and copy: (n,) uint64."""
        digests = b"".join([self._digest(uid, copy, purpose) for uid, copy in zip(uids, copies, strict=True)])
        return np.frombuffer(digests, ">u8")[::2].astype(np.uint64)

    def _digest(self, uid: str, copy: int, purpose: str) -> bytes:
        state = self._keyed.copy()
        state.update(f"{uid}#{copy}|{purpose}".encode())
        return state.digest()
