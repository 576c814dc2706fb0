"""Attention over whole sequences with flash attention for sequences of any length: CUDA, half precision.

The same two branches as in gather.py, but no block is padded: the kernel takes all documents, or all text segments,
end to end with the places where each begins. Where several segments of a document read the same images, these are
repeated, so that each segment has its own stretch of keys.

On a GPU it is the number of calls that costs. So a softmax over all keys is taken over the image rows too, which are
then replaced, rather than without them; and the tokens of a batch should already lie as the calls read them, since
nothing else in a decoder minds their order: `VarlenFlash.unpadded` gives the move that the model then makes once.

`VarlenFlash.is_supported` tells where this can be used; everywhere else gather.py does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import TEXT, Documents, merge_heads, self_values
from .row_permutation import RowPermutation
from .sdpa import Sdpa

try:
    from torch.nn.attention.varlen import varlen_attn

    # Its options grew from release to release.
    _OPTIONS = frozenset(signature(varlen_attn).parameters)
except ImportError:  # an older torch
    _OPTIONS = frozenset()

_WIDEST_HEAD = 256


@dataclass
class VarlenSequences:
    """What one call of the kernel reads: where each stretch of queries and of keys begins, and the longest of each."""

    cu_seq_q: Tensor  # (stretches + 1,) int32
    cu_seq_k: Tensor
    max_q: int
    max_k: int

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int]) -> VarlenSequences:
        """VarlenSequences of so many queries and keys, end to end."""
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
            self.cu_seq_q,
            self.cu_seq_k,
            self.max_q,
            self.max_k,
            scale=sdpa.scaling,
            window_size=(-1, 0) if causal else (-1, -1),
            **grouped,
        )
        return out.flatten(1)


@dataclass
class JointCall:
    """One softmax over a document. `order` puts the documents end to end (None: they lie so already)."""

    order: RowPermutation | None
    stretches: VarlenSequences

    @classmethod
    def build(cls, documents: Documents, total: int) -> JointCall:
        """Plan a batch of `total` tokens, padding included."""
        lengths = documents.lengths.tolist()
        return cls(RowPermutation.from_source(documents.tokens, total), VarlenSequences.of(lengths, lengths))

    def __call__(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, width: int) -> Tensor:
        """Attend from rows (M, H*width) to rows (M, G*width) in this order. Returns (M, H*width)."""
        return self.stretches(sdpa, query, key, value, width, causal=True)


@dataclass
class BranchCalls:
    """Two softmaxes, over text and over images. `order` puts the text of all documents first, then their images.

    There are `texts` rows of text; `text` stretches over that of each document. `segments` moves the text that reads
    images together (None: it is all of it), and `seen` (n,) are the rows of images that its segments read (None: all,
    once); `images` stretches over both, and is None where no text reads an image.
    """

    order: RowPermutation | None
    texts: int
    text: VarlenSequences
    segments: RowPermutation | None = None
    seen: Tensor | None = None
    images: VarlenSequences | None = None

    @classmethod
    def build(cls, documents: Documents, total: int) -> BranchCalls:
        """Plan a batch of `total` tokens, padding included. A segment is text behind the same images: it reads them."""
        is_text = documents.modality == TEXT
        order = torch.cat([documents.tokens[is_text], documents.tokens[~is_text]])
        lengths = [texts for texts in documents.text_lengths.tolist() if texts]
        plan = cls(RowPermutation.from_source(order, total), int(is_text.sum()), VarlenSequences.of(lengths, lengths))

        first = (documents.image_lengths.cumsum(0) - documents.image_lengths)[documents.numbers]
        before = (~is_text).cumsum(0) - first
        reading = before[is_text] > 0
        segments = torch.stack([first[is_text], before[is_text]])[:, reading]
        (firsts, counts), lengths = segments.unique_consecutive(dim=1, return_counts=True)
        if len(lengths):
            seen = [torch.arange(first, first + count) for first, count in zip(firsts, counts, strict=True)]
            seen, images = torch.cat(seen), torch.arange(int(documents.image_lengths.sum()))
            plan.segments = RowPermutation.from_source(reading.nonzero()[:, 0], len(reading))
            plan.seen = None if torch.equal(seen, images) else seen
            plan.images = VarlenSequences.of(lengths.tolist(), counts.tolist())
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
            out = out + (images if self.segments is None else self.segments.inverse()(images))
        repeats = query.shape[1] // value.shape[1]
        if repeats > 1:
            own = own.unflatten(1, (-1, width)).repeat_interleave(repeats, 1).flatten(1)
        return torch.cat([out, own])


@dataclass
class VarlenFlash:
    """The calls of a batch; those that are not needed are None. `own` (B, T, 1, 1) marks queries that are no text."""

    own: Tensor
    whole: JointCall | None = None
    branches: BranchCalls | None = None

    @classmethod
    def build(cls, documents: Documents, own: Tensor, joint: bool, sum: bool) -> VarlenFlash:
        """Plan a batch for those of the methods that will be called: the two joint ones, or `sum`."""
        total = own.shape[:2].numel()
        whole = JointCall.build(documents, total) if joint else None
        return cls(own, whole, BranchCalls.build(documents, total) if sum else None)

    def unpadded(self) -> tuple[VarlenFlash, RowPermutation] | None:
        """The plan of a batch of one row, without padding, whose tokens lie as the calls read them; and the move there.

        None if they lie so already, or if two modality of calls want them in different orders.
        """
        calls = {name: part for name in ("whole", "branches") if (part := getattr(self, name)) is not None}
        if len(calls) != 1:
            return None
        ((name, part),) = calls.items()
        if part.order is None:
            return None
        own = self.own.flatten()[part.order.source].view(1, -1, 1, 1)
        return VarlenFlash(own, **{name: replace(part, order=None)}), part.order

    @staticmethod
    def is_supported(device: torch.device, dtype: torch.dtype, width: int, dropout: float) -> bool:
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
        return torch.where(self.own, self_values(value, query), self.joint(sdpa, query, key, value, layer))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        return _run(self.branches, sdpa, query, key, value)


def _run(calls: JointCall | BranchCalls, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Make the calls on tokens that lie in the batch's order. Returns (B, T, H, D); 0 at padding."""
    batch, heads, length, width = query.shape
    moved = (merge_heads(x) if calls.order is None else calls.order(merge_heads(x)) for x in (query, key, value))
    out = calls(sdpa, *moved, width)
    out = out if calls.order is None else calls.order.inverse()(out)
    return out.view(batch, length, heads, width)
