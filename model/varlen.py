"""Attention over whole sequences with flash attention for sequences of any length: CUDA, half precision.

The same two branches as in gather.py, but no block is padded: the kernel takes all documents, or all text segments,
end to end with the places where each begins. Where several segments of a document read the same images, these are
repeated, so that each segment has its own stretch of keys.

On a GPU it is the number of calls that costs, so tokens are moved as seldom as can be, and a softmax over all keys is
taken over the image rows too, which are then replaced, rather than without them.

`VarlenPlan.runs` tells where this can be used; everywhere else gather.py does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import TEXT, Documents, own_values, rows
from .moves import Move
from .sdpa import Sdpa

try:
    from torch.nn.attention.varlen import varlen_attn

    # Its options grew from release to release.
    _OPTIONS = frozenset(signature(varlen_attn).parameters)
except ImportError:  # an older torch
    _OPTIONS = frozenset()

_WIDEST_HEAD = 256


@dataclass
class Stretches:
    """What one call of the kernel reads: where each stretch of queries and of keys begins, and the longest of each."""

    query_starts: Tensor  # (stretches + 1,) int32
    key_starts: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int]) -> Stretches:
        """Stretches of so many queries and keys, end to end."""
        starts = [F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32) for lengths in (queries, keys)]
        return cls(*starts, max(queries), max(keys))

    def __call__(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, width: int, causal: bool) -> Tensor:
        """Run the kernel on rows (n, heads*width). Returns (queries, H*width)."""
        query, key, value = (x.unflatten(1, (-1, width)) for x in (query, key, value))
        grouped = {}
        if query.shape[1] != key.shape[1]:
            if "enable_gqa" in _OPTIONS:
                grouped = {"enable_gqa": True}
            else:
                key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        # A causal window aligns the last query of a stretch with its last key.
        out = varlen_attn(
            query,
            key,
            value,
            self.query_starts,
            self.key_starts,
            self.longest_query,
            self.longest_key,
            scale=sdpa.scaling,
            window_size=(-1, 0) if causal else (-1, -1),
            **grouped,
        )
        return out.flatten(1)


@dataclass
class VarlenPlan:
    """The calls of a batch. `own` (B, T, 1, 1) marks queries that are no text.

    For `joint`: `whole` stretches over the documents, whose tokens `tokens` moves together (None: they lie so).
    For `sum`: `parts` moves the text and behind it the images of all documents together, `text_rows` the text alone,
    which has `texts` rows; `text` stretches over the text of each document. `segments` moves the text that reads images
    together (None: it is all of it), and `seen` (n,) are the rows of images that its segments read (None: all, once);
    `images` stretches over both, and is None where no text reads an image.
    """

    own: Tensor
    whole: Stretches | None = None
    tokens: Move | None = None
    texts: int = 0
    parts: Move | None = None
    text_rows: Move | None = None
    text: Stretches | None = None
    segments: Move | None = None
    seen: Tensor | None = None
    images: Stretches | None = None

    @classmethod
    def build(cls, documents: Documents, own: Tensor, joint: bool, sum: bool) -> VarlenPlan:
        """Plan a batch for those of the methods that will be called: the two joint ones, or `sum`."""
        plan, total = cls(own), own.shape[:2].numel()
        if joint:
            lengths = documents.lengths.tolist()
            plan.whole, plan.tokens = Stretches.of(lengths, lengths), Move.to(documents.tokens, total)
        if sum:
            is_text = documents.kinds == TEXT
            order = torch.cat([documents.tokens[is_text], documents.tokens[~is_text]])
            plan.texts = int(is_text.sum())
            plan.parts = Move.to(order, total)
            plan.text_rows = Move.to(order[: plan.texts], total)
            lengths = [texts for texts in documents.texts.tolist() if texts]
            plan.text = Stretches.of(lengths, lengths)
            plan._plan_images(documents)
        return plan

    def _plan_images(self, documents: Documents) -> None:
        """Plan what text reads of images. A segment is text behind the same images, all of which it reads."""
        is_text = documents.kinds == TEXT
        first = (documents.images.cumsum(0) - documents.images)[documents.numbers]
        before = (~is_text).cumsum(0) - first
        reading = before[is_text] > 0
        segments = torch.stack([first[is_text], before[is_text]])[:, reading]
        (firsts, counts), lengths = segments.unique_consecutive(dim=1, return_counts=True)
        if len(lengths):
            seen = [torch.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)]
            seen, images = torch.cat(seen), torch.arange(int(documents.images.sum()))
            self.segments = Move.to(reading.nonzero()[:, 0], len(reading))
            self.seen = None if torch.equal(seen, images) else seen
            self.images = Stretches.of(lengths.tolist(), counts.tolist())

    @staticmethod
    def runs(device: torch.device, dtype: torch.dtype, width: int, dropout: float) -> bool:
        """Whether the kernel can compute heads of this width on this device in this precision, without dropout."""
        return (
            "window_size" in _OPTIONS
            and device.type == "cuda"
            and torch.version.hip is None
            and dtype in (torch.float16, torch.bfloat16)
            and width % 8 == 0
            and width <= _WIDEST_HEAD
            and dropout == 0
            and torch.cuda.get_device_capability(device) >= (8, 0)
        )

    def joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """One softmax over all keys of the document up to the query. Returns (B, T, H, D)."""
        move = self.tokens or _unmoved
        out = self.whole(sdpa, *(move(rows(x)) for x in (query, key, value)), query.shape[-1], causal=True)
        return _as_batch(out if self.tokens is None else self.tokens.back()(out), query)

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The same at text tokens alone; at image tokens their own value."""
        return torch.where(self.own, own_values(value, query), self.joint(sdpa, query, key, value, layer))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        width = query.shape[-1]
        move, move_text = self.parts or _unmoved, self.text_rows or _unmoved
        text = move_text(rows(query))
        keys, values = (move(rows(x)) for x in (key, value))
        sizes = (self.texts, len(keys) - self.texts)
        (text_key, image_key), (text_value, image_value) = keys.split(sizes), values.split(sizes)
        out = self.text(sdpa, text, text_key, text_value, width, causal=True)
        if self.images is not None:
            reading = text if self.segments is None else self.segments(text)
            seen = (image_key, image_value) if self.seen is None else (image_key[self.seen], image_value[self.seen])
            images = self.images(sdpa, reading, *seen, width, causal=False)
            out = out + (images if self.segments is None else self.segments.back()(images))
        out = torch.cat([out, _for_all_heads(image_value, query)])
        return _as_batch(out if self.parts is None else self.parts.back()(out), query)


def _unmoved(table: Tensor) -> Tensor:
    return table


def _for_all_heads(table: Tensor, query: Tensor) -> Tensor:
    """(n, G*D) -> (n, H*D): the values of a group for each of its heads."""
    heads, width = query.shape[1], query.shape[3]
    groups = table.shape[1] // width
    return (
        table if groups == heads else table.unflatten(1, (-1, width)).repeat_interleave(heads // groups, 1).flatten(1)
    )


def _as_batch(table: Tensor, query: Tensor) -> Tensor:
    """(B*T, H*D) -> (B, T, H, D)"""
    batch, heads, length, width = query.shape
    return table.view(batch, length, heads, width)
