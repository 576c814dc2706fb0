"""Attention over whole sequences by compacting tokens: every call is an ordinary SDPA without a mask, or nearly so.

The text of each document is compacted and gets plain causal attention. The image branch runs once per *ordinal text
segment* (a segment is consecutive text behind the same images): the last segments of all documents of a block in one
call, those before them in the next, each over the images before it. An image row is a copy of its own value. Documents
of similar size form a block, so that little padding is computed; no T x T mask exists.

Runs on every device, in every precision, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import IMAGE, PAD, TEXT, Documents, compact_left, merge_heads, select_rows, self_values, split_heads
from .sdpa import Sdpa

# A block may hold this many times the query-key pairs of its documents, and this many more: a call costs about as much.
_WASTE, _FREE_PAIRS = 1.25, 1 << 16


@dataclass
class SegmentGroup:
    """The s-th text segments, from the end, of the documents of a block that have one: its first `rows` documents.

    Each has at most `length` text tokens, which attend to at most `key_length` image tokens; `key_mask`
    (rows, 1, 1, key_length) marks which, or is None where every row attends to all of them.
    """

    rows: int
    length: int
    key_length: int
    key_mask: Tensor | None


@dataclass
class Block:
    """Documents that are computed together: `rows` of them, with at most `texts` text and `images` image tokens."""

    rows: int
    texts: int
    images: int
    segment_groups: list[SegmentGroup] = field(default_factory=list)


@dataclass
class JointIndex:
    """How tokens move for `joint`.

    token_index: the blocks (rows, texts) of `blocks`, flattened and joined; each entry is a token of the batch (B*T).
    token_slot (B*T,): where each token of the batch is in `token_index`.
    """

    blocks: list[Block]
    token_index: Tensor
    token_slot: Tensor


@dataclass
class SumIndex:
    """How tokens move for `sum`, block by block. Entries of an index are tokens of the batch (B*T).

    key_index: of each block the text (rows, texts), then the images (rows, images).
    query_index: of each block the text (rows, texts), then its segment groups (rows, length).
    slot (B*T + 1,): where each token is in `key_index`; the last entry is for what is dropped.
    target: the token of each slot of the segment groups (B*T: none); None where no text attends to an image.
    """

    blocks: list[Block]
    key_index: Tensor
    query_index: Tensor
    slot: Tensor
    target: Tensor | None


@dataclass
class SegmentedSdpa:
    """The calls of a batch. `non_text` (B, T, 1, 1) marks queries that are not text.

    `joint_index` is None where every row of the batch begins with its only document, so that no token need move, and
    where `joint` is not called; `sum_index` is None where `sum` is not called.
    """

    non_text: Tensor
    joint_index: JointIndex | None = None
    sum_index: SumIndex | None = None

    @classmethod
    def build(cls, documents: Documents, non_text: Tensor, use_joint: bool, use_sum: bool) -> SegmentedSdpa:
        """Plan a batch for those of the methods that will be called: the two joint ones, or `sum`."""
        batch, length = non_text.shape[:2]
        joint_index = _joint_index(documents, batch, length) if use_joint else None
        return cls(non_text, joint_index, _sum_index(documents, batch * length) if use_sum else None)

    def joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Causal attention within each document. Returns (B, T, H, D)."""
        plan = self.joint_index
        if plan is None:
            return sdpa(query, key, value, causal=True)
        batch, heads, length = query.shape[:3]
        groups = key.shape[1]
        sizes = [block.rows * block.texts for block in plan.blocks]
        queries, keys, values = (
            select_rows(merge_heads(x), plan.token_index).split(sizes) for x in (query, key, value)
        )
        parts = []
        for block, block_query, block_key, block_value in zip(plan.blocks, queries, keys, values, strict=True):
            part = sdpa(
                split_heads(block_query, block.rows, heads),
                split_heads(block_key, block.rows, groups),
                split_heads(block_value, block.rows, groups),
                causal=True,
            )
            parts.append(part.flatten(0, 1).flatten(1))
        return select_rows(torch.cat(parts), plan.token_slot).view(batch, length, heads, -1)

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Causal attention at text tokens; at image tokens their own value. Returns (B, T, H, D)."""
        return torch.where(self.non_text, self_values(value, query), self.joint(sdpa, query, key, value, layer))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        plan = self.sum_index
        assert plan is not None, "the plan was not built for `sum`"
        (batch, heads, length), groups = query.shape[:3], key.shape[1]
        key_sizes: list[int] = []
        query_sizes: list[int] = []
        for block in plan.blocks:
            key_sizes += [block.rows * block.texts, block.rows * block.images]
            query_sizes += [block.rows * block.texts, *(group.rows * group.length for group in block.segment_groups)]
        keys, values = (iter(select_rows(merge_heads(x), plan.key_index).split(key_sizes)) for x in (key, value))
        queries = iter(select_rows(merge_heads(query), plan.query_index).split(query_sizes))
        parts, image_parts = [], []
        for block in plan.blocks:
            text_key, image_key = (split_heads(next(keys), block.rows, groups) for _ in range(2))
            text_value, image_value = (split_heads(next(values), block.rows, groups) for _ in range(2))
            text = sdpa(split_heads(next(queries), block.rows, heads), text_key, text_value, causal=True)
            image_rows = image_value.transpose(1, 2).repeat_interleave(heads // groups, 2)
            parts += [text.flatten(0, 1).flatten(1), image_rows.flatten(0, 1).flatten(1)]
            for group in block.segment_groups:
                seen = (slice(group.rows), slice(None), slice(group.key_length))
                segment = split_heads(next(queries), group.rows, heads)
                image = sdpa(segment, image_key[seen], image_value[seen], mask=group.key_mask)
                image_parts.append(image.flatten(0, 1).flatten(1))
        out = select_rows(torch.cat(parts), plan.slot)
        if plan.target is not None:
            out.index_add_(0, plan.target, torch.cat(image_parts))
        return out[:-1].view(batch, length, heads, -1)


def _joint_index(documents: Documents, batch: int, length: int) -> JointIndex | None:
    first = documents.lengths.cumsum(0) - documents.lengths
    whole_rows = len(documents.lengths) == batch
    if whole_rows and torch.equal(documents.tokens[first], torch.arange(batch) * length):
        return None  # every row begins with its only document
    blocks, index, slot, start = [], [], torch.zeros(batch * length, dtype=torch.int64), 0
    for numbers in _similar_documents(documents.lengths.tolist(), [0] * len(documents.lengths)):
        table, filled = documents.padded_indices(numbers)
        index.append(documents.tokens[table].flatten())
        slot[documents.tokens[table[filled]]] = start + filled.flatten().nonzero()[:, 0]
        start += filled.numel()
        blocks.append(Block(len(numbers), filled.shape[1], 0))
    return JointIndex(blocks, torch.cat(index), slot)


def _sum_index(documents: Documents, total: int) -> SumIndex:
    blocks, keys, queries, targets = [], [], [], []
    slot, start = torch.zeros(total + 1, dtype=torch.int64), 0
    for numbers in _similar_documents(documents.text_lengths.tolist(), documents.image_lengths.tolist()):
        table, filled = documents.padded_indices(numbers)
        modality = documents.modality[table].masked_fill(~filled, PAD)
        tokens = documents.tokens[table].flatten()
        text, text_slot, is_text = compact_left(modality == TEXT)
        # A segment begins where the number of image tokens before the text changes. All these are (n, texts).
        before = (modality == IMAGE).cumsum(1).flatten()[text].masked_fill(~is_text, 0)
        begins = (before != F.pad(before[:, :-1], (1, 0))) & is_text
        count = begins.sum(1, keepdim=True)
        # Counted from the end: the last segment is mostly the longest, and similar lengths waste little in one call.
        ordinal = (count - begins.cumsum(1)).masked_fill(before == 0, -1)

        order = count[:, 0].argsort(descending=True, stable=True)
        image, image_slot, _ = compact_left(modality == IMAGE)
        image_slot += (order.argsort() - torch.arange(len(order)))[:, None] * image.shape[1]
        block_slot = start + torch.where(modality == IMAGE, text.numel() + image_slot, text_slot)
        slot[documents.tokens[table[filled]]] = block_slot[filled]
        start += text.numel() + image.numel()
        keys += [tokens[text].flatten(), tokens[image[order]].flatten()]
        queries.append(tokens[text].flatten())
        block = Block(len(numbers), text.shape[1], image.shape[1])
        for number in range(int(count.max())):
            having = order[: int((count > number).sum())]  # the documents of the block with so many segments
            inside = ordinal[having] == number
            index, _, is_query = compact_left(inside)
            segment = tokens[text[having].flatten()[index]]
            queries.append(segment.flatten())
            targets.append(segment.masked_fill(~is_query, total).flatten())
            key_lengths = before[having].masked_fill(~inside, 0).amax(1)
            mask = torch.arange(int(key_lengths.max())) < key_lengths[:, None, None, None]
            key_mask = None if mask.all() else mask
            block.segment_groups.append(SegmentGroup(len(having), segment.shape[1], mask.shape[-1], key_mask))
        blocks.append(block)
    target = torch.cat(targets) if targets else None
    return SumIndex(blocks, torch.cat(keys), torch.cat(queries), slot, target)


def _similar_documents(texts: Sequence[int], images: Sequence[int]) -> Iterator[Tensor]:
    """Yield groups of document numbers (n,) of similar size, so that padding them to the largest wastes little.

    `texts` and `images` are the numbers of text and image tokens of each document.
    """

    def pairs(text: int, image: int) -> int:
        return text * text // 2 + text * image + image

    group: list[int] = []
    real, widest = 0, 0  # query-key pairs of the group's documents, and the most image tokens of one
    for number in sorted(range(len(texts)), key=lambda number: (-texts[number], -images[number])):
        new_widest, new_pairs = max(widest, images[number]), pairs(texts[number], images[number])
        padded = (len(group) + 1) * pairs(texts[group[0]] if group else texts[number], new_widest)
        if group and padded > _WASTE * (real + new_pairs) + _FREE_PAIRS:
            yield torch.tensor(group)
            group, real, new_widest = [], 0, images[number]
        group.append(number)
        real, widest = real + new_pairs, new_widest
    if group:
        yield torch.tensor(group)
