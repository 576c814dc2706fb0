"""Caches the keys and values of conversations, found by their first tokens.

A client sends its whole conversation in every round, most of which was computed in the round before. So the keys and
values of a conversation are kept when its answer is finished, and the next round continues from them. For the lookup,
tokens are hashed in blocks, each together with all blocks before it and with the pixels of its images: two
conversations have a hash in common exactly if they begin with the same blocks. The rest is then compared token by
token.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from model.conversation_batch import ConversationBatch
from model.template import IMAGE
from scripts.serving.jobs import Job

_BLOCK = 16  # tokens; a shorter common prefix is not found


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The tokens (K,) of a conversation, the hashes and first positions of its images, and the hashes of its blocks."""

    tokens: np.ndarray
    image_hashes: tuple[bytes, ...]
    image_starts: np.ndarray
    blocks: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class _Entry:
    """A cached conversation and its keys and values."""

    content: _Tokens
    batch: ConversationBatch

    @property
    def nbytes(self) -> int:
        return self.batch.nbytes + self.content.tokens.nbytes


class _Entries(LRUCache[int, _Entry]):
    """Entries by number, at most `max_bytes`; `on_evict` is called with every entry that is evicted."""

    def __init__(self, max_bytes: int, on_evict: Callable[[int, _Entry], None]) -> None:
        super().__init__(max_bytes, getsizeof=lambda entry: entry.nbytes)
        self._on_evict = on_evict

    def popitem(self) -> tuple[int, _Entry]:
        number, entry = super().popitem()
        self._on_evict(number, entry)
        return number, entry


class PrefixCache:
    """A cache of conversations with bounded memory. Not thread-safe."""

    def __init__(self, max_bytes: int, image_tokens: int) -> None:
        """`max_bytes` on the model's device; `image_tokens` of one image."""
        self._entries = _Entries(max_bytes, self._forget)
        self._by_block: dict[bytes, dict[int, None]] = {}  # the conversations that have a block, newest last
        self._image_tokens = image_tokens
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Memory of the cached conversations."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, job: Job) -> tuple[ConversationBatch | None, int]:
        """A conversation with the same first tokens as `job`, and how many tokens they share; (None, 0) without one.

        The last token of the job is never shared, because the first token of the answer is computed from it.
        """
        _, entry, shared = self._find(self._tokens(job, len(job.encoded) - 1))
        return (entry.batch, shared) if entry is not None else (None, 0)

    def keep(self, job: Job, batch: ConversationBatch) -> None:
        """Cache the conversation of a finished job, in place of the one that it continued."""
        content = self._tokens(job, batch.lengths[0])
        number, entry, shared = self._find(content)
        if entry is not None and shared == len(entry.content.tokens):
            self._forget(number, self._entries.pop(number))
        self._next += 1
        new = _Entry(content, batch)
        if new.nbytes <= self._entries.maxsize:
            self._entries[self._next] = new
            for block in content.blocks:
                self._by_block.setdefault(block, {})[self._next] = None

    def clear(self) -> None:
        """Remove all conversations."""
        self._entries.clear()
        self._by_block.clear()

    def _find(self, content: _Tokens) -> tuple[int, _Entry | None, int]:
        """The conversation that shares most blocks with `content`: its number, its entry, and the shared tokens."""
        for block in reversed(content.blocks):
            if block in self._by_block:
                number = next(reversed(self._by_block[block]))
                entry = self._entries.get(number)
                return number, entry, 0 if entry is None else _shared_tokens(content, entry.content)
        return 0, None, 0

    def _forget(self, number: int, entry: _Entry) -> None:
        for block in entry.content.blocks:
            numbers = self._by_block.get(block, {})
            numbers.pop(number, None)
            if not numbers:
                self._by_block.pop(block, None)

    def _tokens(self, job: Job, length: int) -> _Tokens:
        """The first `length` tokens of a job's conversation, its answer included."""
        tokens = np.asarray((job.encoded.input_ids + job.output_ids)[:length], dtype=np.int64)
        starts = np.flatnonzero(np.asarray(job.encoded.modality[:length]) == IMAGE)[:: self._image_tokens]
        blocks, digest = [], b""
        for first in range(0, len(tokens) - _BLOCK + 1, _BLOCK):
            low, high = np.searchsorted(starts, (first, first + _BLOCK))
            digest = hashlib.blake2b(
                digest + tokens[first : first + _BLOCK].tobytes() + b"".join(job.hashes[low:high]), digest_size=16
            ).digest()
            blocks.append(digest)
        return _Tokens(tokens, tuple(job.hashes[: len(starts)]), starts, tuple(blocks))


def _shared_tokens(one: _Tokens, other: _Tokens) -> int:
    """How many first tokens are equal; images are equal if their pixels are."""
    length = min(len(one.tokens), len(other.tokens))
    differ = np.flatnonzero(one.tokens[:length] != other.tokens[:length])
    same = int(differ[0]) if len(differ) else length
    for image, other_image, start in zip(one.image_hashes, other.image_hashes, one.image_starts, strict=False):
        if image != other_image:
            return min(same, int(start))
    return same
