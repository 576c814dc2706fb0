"""Attention over whole batches with flash attention for variable-length sequences: CUDA, half precision.

The same two branches as in sdpa_segments.py, but no block is padded: the kernel takes all documents, or all text
segments, end to end, with the index where each begins. Where several segments of a document attend to the same images,
these are repeated, so that each segment has its own sequence of keys.

On a GPU it is the number of calls that costs. So a softmax over all keys includes the queries of images, whose results
are then replaced, rather than leaving them out; and the tokens of a batch should already be in the order of the calls,
since nothing else in a decoder depends on it: `VarlenFlash.unpadded` gives the permutation that the model then applies
once.

`VarlenFlash.is_supported` decides where this can be used; everywhere else sdpa_segments.py does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

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
    """The sequences of one call of the kernel: where each begins among queries and keys, and the longest of each."""

    cu_seq_q: Tensor  # (sequences + 1,) int32
    cu_seq_k: Tensor
    max_q: int
    max_k: int

    @classmethod
    def from_lengths(cls, queries: Sequence[int], keys: Sequence[int]) -> VarlenSequences:
        """Sequences with these numbers of queries and of keys, end to end."""
        cu_seq_q, cu_seq_k = (
            F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32) for lengths in (queries, keys)
        )
        return cls(cu_seq_q, cu_seq_k, max(queries), max(keys))

    def __call__(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, width: int, causal: bool) -> Tensor:
        """Run the kernel on rows (n, heads*width). Returns (queries, H*width)."""
        query, key, value = (x.unflatten(1, (-1, width)) for x in (query, key, value))
        options: dict[str, Any] = {}  # which ones exist depends on the release of torch
        if query.shape[1] != key.shape[1]:
            if "enable_gqa" in _OPTIONS:
                options["enable_gqa"] = True
            else:
                key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        # A causal window aligns the last query of a sequence with its last key.
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
            **options,
        )
        assert isinstance(out, Tensor)  # a pair only where the log-sum-exp is requested
        return out.flatten(1)


@dataclass
class JointCall:
    """One softmax over a document. `order` puts the documents end to end (None: they already are)."""

    order: RowPermutation | None
    sequences: VarlenSequences

    @classmethod
    def build(cls, documents: Documents, total: int) -> JointCall:
        """Plan a batch of `total` tokens, padding included."""
        lengths = documents.lengths.tolist()
        return cls(RowPermutation.from_source(documents.tokens, total), VarlenSequences.from_lengths(lengths, lengths))

    def __call__(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, width: int) -> Tensor:
        """Attend from rows (M, H*width) to rows (M, G*width) in this order. Returns (M, H*width)."""
        return self.sequences(sdpa, query, key, value, width, causal=True)


@dataclass
class BranchCalls:
    """Two softmaxes, over text and over images. `order` puts the text of all documents first, then their images.

    There are `texts` rows of text; the sequences of `text` are the text of each document. `reading` selects the text
    that attends to images (None: all of it), and `seen` (n,) are the rows of images that its segments attend to (None:
    all, once); the sequences of `images` pair both, and it is None where no text attends to an image.
    """

    order: RowPermutation | None
    texts: int
    text: VarlenSequences
    reading: RowPermutation | None = None
    seen: Tensor | None = None
    images: VarlenSequences | None = None

    @classmethod
    def build(cls, documents: Documents, total: int) -> BranchCalls:
        """Plan a batch of `total` tokens, padding included. A segment is consecutive text behind the same images."""
        is_text = documents.modality == TEXT
        order = torch.cat([documents.tokens[is_text], documents.tokens[~is_text]])
        lengths = [length for length in documents.text_lengths.tolist() if length]
        plan = cls(
            RowPermutation.from_source(order, total), int(is_text.sum()), VarlenSequences.from_lengths(lengths, lengths)
        )

        first = (documents.image_lengths.cumsum(0) - documents.image_lengths)[documents.numbers]
        before = (~is_text).cumsum(0) - first
        is_reading = before[is_text] > 0
        segments = torch.stack([first[is_text], before[is_text]])[:, is_reading]
        (firsts, counts), segment_lengths = segments.unique_consecutive(dim=1, return_counts=True)
        if len(segment_lengths):
            seen = torch.cat([torch.arange(start, start + count) for start, count in zip(firsts, counts, strict=True)])
            plan.reading = RowPermutation.from_source(is_reading.nonzero()[:, 0], len(is_reading))
            plan.seen = None if torch.equal(seen, torch.arange(int(documents.image_lengths.sum()))) else seen
            plan.images = VarlenSequences.from_lengths(segment_lengths.tolist(), counts.tolist())
        return plan

    def __call__(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, width: int) -> Tensor:
        """Attend from rows (M, H*width) to rows (M, G*width) in this order. Returns (M, H*width)."""
        sizes = (self.texts, len(key) - self.texts)
        text, (text_key, image_key), (text_value, image_value) = (
            query[: self.texts],
            key.split(sizes),
            value.split(sizes),
        )
        out = self.text(sdpa, text, text_key, text_value, width, causal=True)
        if self.images is not None:
            reading = text if self.reading is None else self.reading(text)
            seen_key = image_key if self.seen is None else image_key[self.seen]
            seen_value = image_value if self.seen is None else image_value[self.seen]
            images = self.images(sdpa, reading, seen_key, seen_value, width, causal=False)
            out = out + (images if self.reading is None else self.reading.inverse()(images))
        repeats = query.shape[1] // value.shape[1]
        if repeats > 1:
            image_value = image_value.unflatten(1, (-1, width)).repeat_interleave(repeats, 1).flatten(1)
        return torch.cat([out, image_value])


@dataclass
class VarlenFlash:
    """The calls of a batch; None where not needed. `non_text` (B, T, 1, 1) marks queries that are not text."""

    non_text: Tensor
    whole: JointCall | None = None
    branches: BranchCalls | None = None

    @classmethod
    def build(cls, documents: Documents, non_text: Tensor, use_joint: bool, use_sum: bool) -> VarlenFlash:
        """Plan a batch for those of the methods that will be called: the two joint ones, or `sum`."""
        total = non_text.shape[:2].numel()
        whole = JointCall.build(documents, total) if use_joint else None
        return cls(non_text, whole, BranchCalls.build(documents, total) if use_sum else None)

    def unpadded(self) -> tuple[VarlenFlash, RowPermutation] | None:
        """The calls for the batch as one row without padding, in the order of the calls; and the permutation to it.

        None if the tokens are in that order already, or if both kinds of calls are needed, whose orders differ.
        """
        calls = self.whole or self.branches
        if calls is None or calls.order is None or (self.whole and self.branches):
            return None
        return VarlenFlash(
            self.non_text.flatten()[calls.order.source].view(1, -1, 1, 1),
            whole=replace(self.whole, order=None) if self.whole else None,
            branches=replace(self.branches, order=None) if self.branches else None,
        ), calls.order

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
        return torch.where(self.non_text, self_values(value, query), self.joint(sdpa, query, key, value, layer))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        return _run(self.branches, sdpa, query, key, value)


def _run(calls: JointCall | BranchCalls | None, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Make the calls on tokens in the order of the batch. Returns (B, T, H, D); 0 at padding."""
    assert calls is not None, "the plan was not built for this method"
    batch, heads, length, width = query.shape
    query, key, value = (
        merge_heads(x) if calls.order is None else calls.order(merge_heads(x)) for x in (query, key, value)
    )
    out = calls(sdpa, query, key, value, width)
    out = out if calls.order is None else calls.order.inverse()(out)
    return out.view(batch, length, heads, width)
