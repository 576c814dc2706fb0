"""Attention over whole sequences with flash attention for sequences of any length: CUDA, half precision.

The same two branches as in gather.py, but no block is padded: the kernel takes all documents, or all text segments,
end to end with the places where each begins. Where several segments of a document read the same images, these are
repeated, so that each segment has its own stretch of keys.

`VarlenPlan.runs` tells where this can be used; everywhere else gather.py does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import IMAGE, TEXT, Documents, own_values, rows, take
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
    """One call of the kernel: queries and keys as flat indices in the batch, and where each stretch of them begins."""

    queries: Tensor
    keys: Tensor
    query_starts: Tensor  # (stretches + 1,) int32
    key_starts: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def join(cls, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Stretches | None:
        """Put stretches end to end; None if there are none."""
        if not queries:
            return None
        lengths = [torch.tensor([len(part) for part in parts]) for parts in (queries, keys)]
        starts = [F.pad(length.cumsum(0), (1, 0)).to(torch.int32) for length in lengths]
        return cls(torch.cat(list(queries)), torch.cat(list(keys)), *starts, *(int(n.max()) for n in lengths))


@dataclass
class VarlenPlan:
    """The calls of a batch; those that are not needed are None."""

    whole: Stretches | None = None  # causal over all tokens of each document
    text: Stretches | None = None  # causal over the text of each document
    images: Stretches | None = None  # every text segment over the images before it
    text_of_whole: Stretches | None = None  # every text segment, causal over all tokens up to its end

    @classmethod
    def build(cls, documents: Documents, joint: bool, text_joint: bool, sum: bool) -> VarlenPlan:
        """Plan a batch for those of the three methods that will be called."""
        tokens = documents.tokens.split(documents.lengths.tolist())
        kinds = documents.kinds.split(documents.lengths.tolist())
        plan = cls()
        if joint:
            plan.whole = Stretches.join(tokens, tokens)
        if sum:
            texts = [token[kind == TEXT] for token, kind in zip(tokens, kinds, strict=True)]
            texts = [text for text in texts if len(text)]
            plan.text = Stretches.join(texts, texts)
        queries, images, before = [], [], []
        for token, kind in zip(tokens, kinds, strict=True):
            for start, end in _text_segments(kind):
                queries.append(token[start:end])
                images.append(token[:start][kind[:start] == IMAGE])
                before.append(token[:end])
        if text_joint:
            plan.text_of_whole = Stretches.join(queries, before)
        if sum:
            seeing = [place for place, image in enumerate(images) if len(image)]
            plan.images = Stretches.join([queries[place] for place in seeing], [images[place] for place in seeing])
        return plan

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
        return _fill(query, value, self.whole, _call(sdpa, query, key, value, self.whole, causal=True))

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The same at text tokens alone; at image tokens their own value."""
        return _fill(query, value, self.text_of_whole, _call(sdpa, query, key, value, self.text_of_whole, causal=True))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        out = _fill(query, value, self.text, _call(sdpa, query, key, value, self.text, causal=True))
        if self.images is None:
            return out
        images = _call(sdpa, query, key, value, self.images, causal=False)
        return out.flatten(0, 1).flatten(1).index_add(0, self.images.queries, images).view_as(out)


def _text_segments(kinds: Tensor) -> list[tuple[int, int]]:
    """Where each stretch of text begins and ends in the kinds (n,) of a document's tokens."""
    is_text = F.pad((kinds == TEXT).to(torch.int8), (1, 1))
    edges = is_text.diff()
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True))


def _call(sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, part: Stretches, causal: bool) -> Tensor:
    """Run the kernel on stretches. Returns (queries, H*D)."""
    width = query.shape[-1]
    query, key, value = (
        take(rows(x), index).unflatten(1, (-1, width))
        for x, index in ((query, part.queries), (key, part.keys), (value, part.keys))
    )
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
        part.query_starts,
        part.key_starts,
        part.longest_query,
        part.longest_key,
        scale=sdpa.scaling,
        window_size=(-1, 0) if causal else (-1, -1),
        **grouped,
    )
    return out.flatten(1)


def _fill(query: Tensor, value: Tensor, part: Stretches, out: Tensor) -> Tensor:
    """Put the results of stretches to their tokens, and own values everywhere else. Returns (B, T, H, D)."""
    own = own_values(value, query)
    return own.flatten(0, 1).flatten(1).index_copy(0, part.queries, out).view_as(own)
