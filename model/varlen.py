"""Attention over whole sequences with flash attention for sequences of any length: CUDA, half precision.

The same two branches as in gather.py, but no block is padded: the kernel takes all documents, or all text segments,
end to end with the places where each begins. Where several segments of a document read the same images, these are
repeated, so that each segment has its own stretch of keys.

On a GPU it is the number of calls that costs. So a softmax over all keys is taken over the image rows too, which are
then replaced, rather than without them; and the tokens of a batch should already lie as the calls read them, since
nothing else in a decoder minds their order: `VarlenPlan.flattened` gives the move that the model then makes once.

`VarlenPlan.runs` tells where this can be used; everywhere else gather.py does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
class Whole:
    """One softmax over a document. `order` puts the documents end to end (None: they lie so already)."""

    order: Move | None
    stretches: Stretches

    @classmethod
    def build(cls, documents: Documents, total: int) -> Whole:
        """Plan a batch of `total` tokens, padding included."""
        lengths = documents.lengths.tolist()
        return cls(Move.to(documents.tokens, total), Stretches.of(lengths, lengths))

    def __call__(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, width: int) -> Tensor:
        """Attend from rows (M, H*width) to rows (M, G*width) in this order. Returns (M, H*width)."""
        return self.stretches(sdpa, query, key, value, width, causal=True)


@dataclass
class Branches:
    """Two softmaxes, over text and over images. `order` puts the text of all documents first, then their images.

    There are `texts` rows of text; `text` stretches over that of each document. `segments` moves the text that reads
    images together (None: it is all of it), and `seen` (n,) are the rows of images that its segments read (None: all,
    once); `images` stretches over both, and is None where no text reads an image.
    """

    order: Move | None
    texts: int
    text: Stretches
    segments: Move | None = None
    seen: Tensor | None = None
    images: Stretches | None = None

    @classmethod
    def build(cls, documents: Documents, total: int) -> Branches:
        """Plan a batch of `total` tokens, padding included. A segment is text behind the same images: it reads them."""
        is_text = documents.kinds == TEXT
        order = torch.cat([documents.tokens[is_text], documents.tokens[~is_text]])
        lengths = [texts for texts in documents.texts.tolist() if texts]
        plan = cls(Move.to(order, total), int(is_text.sum()), Stretches.of(lengths, lengths))

        first = (documents.images.cumsum(0) - documents.images)[documents.numbers]
        before = (~is_text).cumsum(0) - first
        reading = before[is_text] > 0
        segments = torch.stack([first[is_text], before[is_text]])[:, reading]
        (firsts, counts), lengths = segments.unique_consecutive(dim=1, return_counts=True)
        if len(lengths):
            seen = [torch.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)]
            seen, images = torch.cat(seen), torch.arange(int(documents.images.sum()))
            plan.segments = Move.to(reading.nonzero()[:, 0], len(reading))
            plan.seen = None if torch.equal(seen, images) else seen
            plan.images = Stretches.of(lengths.tolist(), counts.tolist())
        return plan

    def __call__(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, width: int) -> Tensor:
        """Attend from rows (M, H*width) to rows (M, G*width) in this order. Returns (M, H*width)."""
        sizes = (self.texts, len(key) - self.texts)
        text, (text_key, image_key), (text_value, own) = query[: self.texts], key.split(sizes), value.split(sizes)
        out = self.text(sdpa, text, text_key, text_value, width, causal=True)
        if self.images is not None:
            reading = text if self.segments is None else self.segments(text)
            seen = (image_key, own) if self.seen is None else (image_key[self.seen], own[self.seen])
            images = self.images(sdpa, reading, *seen, width, causal=False)
            out = out + (images if self.segments is None else self.segments.back()(images))
        repeats = query.shape[1] // value.shape[1]
        if repeats > 1:
            own = own.unflatten(1, (-1, width)).repeat_interleave(repeats, 1).flatten(1)
        return torch.cat([out, own])


@dataclass
class VarlenPlan:
    """The calls of a batch; those that are not needed are None. `own` (B, T, 1, 1) marks queries that are no text."""

    own: Tensor
    whole: Whole | None = None
    branches: Branches | None = None

    @classmethod
    def build(cls, documents: Documents, own: Tensor, joint: bool, sum: bool) -> VarlenPlan:
        """Plan a batch for those of the methods that will be called: the two joint ones, or `sum`."""
        total = own.shape[:2].numel()
        whole = Whole.build(documents, total) if joint else None
        return cls(own, whole, Branches.build(documents, total) if sum else None)

    def flattened(self) -> tuple[VarlenPlan, Move] | None:
        """The plan of a batch of one row, without padding, whose tokens lie as the calls read them; and the move there.

        None if they lie so already, or if two kinds of calls want them in different orders.
        """
        calls = {name: part for name in ("whole", "branches") if (part := getattr(self, name)) is not None}
        if len(calls) != 1:
            return None
        ((name, part),) = calls.items()
        if part.order is None:
            return None
        own = self.own.flatten()[part.order.source].view(1, -1, 1, 1)
        return VarlenPlan(own, **{name: replace(part, order=None)}), part.order

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
        return _run(self.whole, sdpa, query, key, value)

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The same at text tokens alone; at image tokens their own value."""
        return torch.where(self.own, own_values(value, query), self.joint(sdpa, query, key, value, layer))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        return _run(self.branches, sdpa, query, key, value)


def _run(calls: Whole | Branches, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Make the calls on tokens that lie in the batch's order. Returns (B, T, H, D); 0 at padding."""
    batch, heads, length, width = query.shape
    moved = (rows(x) if calls.order is None else calls.order(rows(x)) for x in (query, key, value))
    out = calls(sdpa, *moved, width)
    out = out if calls.order is None else calls.order.back()(out)
    return out.view(batch, length, heads, width)
