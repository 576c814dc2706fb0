"""What conversations left behind, found again by how they begin.

A client sends its whole conversation in every round. Most of it was read in the round before, so the keys and values of
a conversation are kept when its answer is finished, and the next question goes on from there. To find out where, tokens
are hashed in blocks, each together with everything before it and with the pixels of its images: two conversations share
a hash exactly if they begin with the same blocks. The last, incomplete block is then compared token by token.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from model.conversation_batch import ConversationBatch
from model.template import IMAGE
from scripts.serving.jobs import Job

_BLOCK = 16  # tokens; what is shorter is not worth finding


@dataclass(frozen=True, eq=False)
class _Known:
    """A conversation that was computed: its tokens (K,), where its images begin, and what the model keeps of it."""

    tokens: np.ndarray
    hashes: tuple[bytes, ...]
    starts: np.ndarray
    blocks: tuple[bytes, ...]
    batch: ConversationBatch

    @property
    def nbytes(self) -> int:
        return self.batch.nbytes + self.tokens.nbytes


class _Memory(LRUCache):
    """Conversations by their number, within `room` bytes; `on_evict` is called with each that has to make room."""

    def __init__(self, room: int, on_evict: Callable[[int, _Known], None]):
        super().__init__(room, getsizeof=lambda known: known.nbytes)
        self._on_evict = on_evict

    def popitem(self) -> tuple[int, _Known]:
        number, known = super().popitem()
        self._on_evict(number, known)
        return number, known


class PrefixCache:
    """A bounded memory of conversations. One thread uses it."""

    def __init__(self, room: int, image_tokens: int):
        """`room` in bytes on the model's device."""
        self._kept = _Memory(room, self._forget)
        self._by_block: dict[bytes, dict[int, None]] = {}  # which conversations have a block, the newest last
        self._image_tokens = image_tokens
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._kept.currsize

    def __len__(self) -> int:
        return len(self._kept)

    def longest(self, job: Job) -> tuple[ConversationBatch | None, int]:
        """A conversation that begins like `job`, and how many tokens the two share.

        At least the last token of the job is never shared: the first one of the answer follows from it.
        """
        known, same = self._find(self._described(job, len(job.encoded) - 1))[1:]
        return (known.batch, same) if known is not None else (None, 0)

    def keep(self, job: Job, batch: ConversationBatch) -> None:
        """Remember the conversation of a job that ended, in `batch`; what it went on from is no longer needed."""
        new = self._described(job, batch.lengths[0], batch)
        number, known, same = self._find(new)
        if known is not None and same == len(known.tokens):
            self._forget(number, self._kept.pop(number))
        self._next += 1
        if new.nbytes <= self._kept.maxsize:
            self._kept[self._next] = new
            for block in new.blocks:
                self._by_block.setdefault(block, {})[self._next] = None

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._by_block.clear()

    def _find(self, new: _Known) -> tuple[int, _Known | None, int]:
        """The conversation that shares most blocks with `new`, its number, and how many tokens are the same."""
        for block in reversed(new.blocks):
            if block in self._by_block:
                number = next(reversed(self._by_block[block]))
                known = self._kept.get(number)
                return number, known, _shared(new, known)
        return 0, None, 0

    def _forget(self, number: int, known: _Known) -> None:
        for block in known.blocks:
            numbers = self._by_block.get(block, {})
            numbers.pop(number, None)
            if not numbers:
                self._by_block.pop(block, None)

    def _described(self, job: Job, length: int, batch: ConversationBatch | None = None) -> _Known:
        """The first `length` tokens of a job's conversation."""
        tokens = np.asarray((job.encoded.input_ids + job.output_ids)[:length], dtype=np.int64)
        starts = np.flatnonzero(np.asarray(job.encoded.modality[:length]) == IMAGE)[:: self._image_tokens]
        blocks, digest = [], b""
        for first in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
            low, high = np.searchsorted(starts, (first, first + _BLOCK))
            digest = hashlib.blake2b(
                digest + tokens[first : first + _BLOCK].tobytes() + b"".join(job.hashes[low:high]), digest_size=16
            ).digest()
            blocks.append(digest)
        return _Known(tokens, tuple(job.hashes[: len(starts)]), starts, tuple(blocks), batch)


def _shared(one: _Known, other: _Known) -> int:
    """How many tokens at the beginning are the same, images among them by their pixels."""
    length = min(len(one.tokens), len(other.tokens))
    differ = np.flatnonzero(one.tokens[:length] != other.tokens[:length])
    same = int(differ[0]) if len(differ) else length
    for mine, theirs, start in zip(one.hashes, other.hashes, one.starts, strict=False):
        if mine != theirs:
            return min(same, int(start))
    return same
