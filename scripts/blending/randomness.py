"""Randomness without a generator: every draw is a hash of what it is for.

A draw belongs to a record (its uid), a copy of it and a purpose, under a key of seed and epoch:

    blake2b(f"{uid}#{copy}|{purpose}", key=f"{seed}:{epoch}", digest_size=16)

So there is no order of draws and no state. Adding, removing or changing one dataset leaves every draw of the others as
it was, and shuffling is sorting by such hashes. Millions are drawn at a time: one hash takes a microsecond, and
everything else is done on arrays.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, repeat

import numpy as np

from scripts.blending.ragged import chunked

Purpose = str | Iterable[bytes]
"""What draws are for: one text for all of them, or one for each."""

_BYTES = 16
_LIMB = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


class Draws:
    """All draws of one epoch of one blend."""

    def __init__(self, seed: int, epoch: int) -> None:
        # A keyed state is copied for every draw: hashing the key once instead of a million times.
        self._keyed = hashlib.blake2b(key=f"{seed}:{epoch}".encode(), digest_size=_BYTES)

    def below(self, sizes: np.ndarray, uids: Iterable[bytes], copies: np.ndarray, purpose: Purpose) -> np.ndarray:
        """Whole numbers in [0, size) for sizes, uids and copies (n,): (n,) int64, uniform to within 2**-64."""
        return _scaled(self._digests(uids, copies, purpose), sizes)

    def keys(self, uids: Iterable[bytes], copies: np.ndarray, purpose: Purpose) -> np.ndarray:
        """Numbers of 64 bits to sort by, for uids and copies (n,): (n,) uint64."""
        return np.frombuffer(self._digests(uids, copies, purpose), ">u8")[::2].astype(np.uint64)

    def _digests(self, uids: Iterable[bytes], copies: np.ndarray, purpose: Purpose) -> bytes:
        """The digests of many draws, one after the other; uids and purposes may be iterators."""
        copies = np.asarray(copies)
        purposes = repeat(purpose.encode(), len(copies)) if isinstance(purpose, str) else purpose
        fresh, digests = self._keyed.copy, bytearray()
        for uid, copy, text in zip(uids, python_values(copies), purposes, strict=True):
            state = fresh()
            state.update(b"%b#%d|%b" % (uid, copy, text))
            digests += state.digest()
        return bytes(digests)


def python_values(values: np.ndarray) -> Iterator[int]:
    """The numbers of an array as Python's own, made chunk by chunk."""
    return chain.from_iterable(chunk.tolist() for chunk in chunked(values))


def _scaled(digests: bytes, sizes: np.ndarray) -> np.ndarray:
    """For every digest of 16 bytes and size (n,) digest * size >> 128, in limbs of 32 bits: (n,) int64."""
    limbs = np.frombuffer(digests, ">u4").reshape(-1, 4).astype(np.uint64)
    sizes = np.asarray(sizes).astype(np.uint64)
    low, high = sizes & _LIMB, sizes >> _32
    # Long multiplication from the lowest limb up; `carry` is the product so far, without its limbs below.
    carry = np.zeros_like(sizes)
    for index in (3, 2, 1, 0):
        below = limbs[:, index] * low + (carry & _LIMB)
        carry = limbs[:, index] * high + (carry >> _32) + (below >> _32)
    return carry.astype(np.int64)
