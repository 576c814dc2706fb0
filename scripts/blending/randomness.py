"""Randomness without a generator: every draw is a hash of what it is for.

A draw belongs to a record (its uid), a copy of it and a purpose, under a key of seed and epoch:

    blake2b(f"{uid}#{copy}|{purpose}", key=f"{seed}:{epoch}", digest_size=16)

So there is no order of draws and no state. Adding, removing or changing one dataset leaves every draw of the others as
it was, and shuffling is sorting by such hashes. Millions are drawn at a time: one hash takes a microsecond, and
everything around it is done on arrays.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

_BITS = 128
_LIMB = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


class Draws:
    """All draws of one epoch of one blend."""

    def __init__(self, seed: int, epoch: int):
        # A keyed state is copied for every draw: hashing the key once instead of a million times.
        self._keyed = hashlib.blake2b(key=f"{seed}:{epoch}".encode(), digest_size=_BITS // 8)

    def below(self, size: int, uid: bytes, copy: int, purpose: str) -> int:
        """A whole number in [0, size), uniform to within 2**-64 for every size up to 2**64."""
        return int.from_bytes(self._digest(uid, copy, purpose), "big") * size >> _BITS

    def key(self, uid: bytes, copy: int, purpose: str) -> int:
        """A number of 64 bits to sort by."""
        return int.from_bytes(self._digest(uid, copy, purpose)[:8], "big")

    def many_below(self, sizes: np.ndarray, uids: Sequence[bytes], copies: np.ndarray, purpose: str) -> np.ndarray:
        """`below` for many sizes (n,), uids and copies: (n,) int64."""
        return _scaled(self._digests(uids, copies, purpose), sizes)

    def keys(self, uids: Sequence[bytes], copies: np.ndarray, purpose: str) -> np.ndarray:
        """`key` for many pairs of uid and copy: (n,) uint64."""
        return np.frombuffer(self._digests(uids, copies, purpose), ">u8")[::2].astype(np.uint64)

    def _digest(self, uid: bytes, copy: int, purpose: str) -> bytes:
        state = self._keyed.copy()
        state.update(b"%b#%d|%b" % (uid, copy, purpose.encode()))
        return state.digest()

    def _digests(self, uids: Sequence[bytes], copies: np.ndarray, purpose: str) -> bytes:
        """The digests of many draws, one after the other."""
        fresh, purposed, digests = self._keyed.copy, purpose.encode(), bytearray()
        for uid, copy in zip(uids, np.asarray(copies).tolist(), strict=True):
            state = fresh()
            state.update(b"%b#%d|%b" % (uid, copy, purposed))
            digests += state.digest()
        return bytes(digests)


def _scaled(digests: bytes, sizes: np.ndarray) -> np.ndarray:
    """digest * size >> 128 for every digest of 16 bytes and size (n,), in limbs of 32 bits: (n,) int64."""
    limbs = np.frombuffer(digests, ">u4").reshape(-1, 4).astype(np.uint64)
    sizes = np.asarray(sizes).astype(np.uint64)
    low, high = sizes & _LIMB, sizes >> _32
    # Long multiplication from the lowest limb up; `carry` is the product so far, without its limbs below.
    carry = np.zeros_like(sizes)
    for place in (3, 2, 1, 0):
        below = limbs[:, place] * low + (carry & _LIMB)
        carry = limbs[:, place] * high + (carry >> _32) + (below >> _32)
    return carry.astype(np.int64)
