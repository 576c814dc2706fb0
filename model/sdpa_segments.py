"""Attention over whole sequences by moving tokens together: every call is an ordinary, mask-free (or nearly) SDPA.

The text of each document is moved together and gets plain causal attention; the image branch runs once per *ordinal
text segment* (a stretch of text behind the same images): the last segments of all documents of a block in one call,
those before them in the next, each over the images before it. An image row is a copy of its own value. Documents of
similar size form a block, so that little padding is computed; no T x T mask exists.

Runs on every device, in every precision, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterable
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

    Each has at most `length` text tokens, which read at most `key_length` image tokens; `key_mask`
    (rows, 1, 1, key_length) tells which, or is None where every row reads all of them.
    """

    rows: int
    length: int
    key_length: int
    key_mask: Tensor | None


@dataclass
class Block:
    """Documents that are computed together: `rows` of them, with at most `texts` and `images` tokens."""

    rows: int
    texts: int
    images: int
    segments: list[SegmentGroup] = field(default_factory=list)


@dataclass
class SegmentedSdpa:
    """Which tokens each call reads and where its results go. An index counts in the B*T tokens of the batch.

    For `sum`, block by block: `key_index` holds the text (rows, texts), then the images (rows, images);
    `query_index` the text, then the segments. `slot` (B*T + 1,) tells where each token went in `key_index` (the last
    is for what is dropped), `target` the token of each place of the segments (B*T: none).
    For `joint`: `token_index` holds the blocks (rows, texts) of `token_blocks`, `token_slot` (B*T,) where each token
    went; None where the batch is one such block already. `own` (B, T, 1, 1) marks queries that are no text.
    """

    own: Tensor
    blocks: list[Block] = field(default_factory=list)
    key_index: Tensor | None = None
    query_index: Tensor | None = None
    slot: Tensor | None = None
    target: Tensor | None = None
    token_blocks: list[Block] = field(default_factory=list)
    token_index: Tensor | None = None
    token_slot: Tensor | None = None

    @classmethod
    def build(cls, documents: Documents, own: Tensor, joint: bool, sum: bool) -> SegmentedSdpa:
        """Plan a batch for those of the methods that will be called: the two joint ones, or `sum`."""
        plan, (batch, length) = cls(own), own.shape[:2]
        if joint:
            plan._plan_joint(documents, batch, length)
        if sum:
            plan._plan_sum(documents, batch * length)
        return plan

    def _plan_joint(self, documents: Documents, batch: int, length: int) -> None:
        first = documents.lengths.cumsum(0) - documents.lengths
        whole_rows = len(documents.lengths) == batch
        if whole_rows and torch.equal(documents.tokens[first], torch.arange(batch) * length):
            return  # every row begins with its only document
        index, slot, place = [], torch.zeros(batch * length, dtype=torch.int64), 0
        for chosen in _alike(documents.lengths, torch.zeros_like(documents.lengths)):
            table, filled = documents.padded_indices(chosen)
            index.append(documents.tokens[table].flatten())
            slot[documents.tokens[table[filled]]] = place + filled.flatten().nonzero()[:, 0]
            place += filled.numel()
            self.token_blocks.append(Block(len(chosen), filled.shape[1], 0))
        self.token_index, self.token_slot = torch.cat(index), slot

    def _plan_sum(self, documents: Documents, total: int) -> None:
        keys, queries, targets = [], [], []
        self.slot, place = torch.zeros(total + 1, dtype=torch.int64), 0
        for chosen in _alike(documents.text_lengths, documents.image_lengths):
            table, filled = documents.padded_indices(chosen)
            modality = documents.modality[table].masked_fill(~filled, PAD)
            tokens = documents.tokens[table].flatten()
            text, text_slot, is_text = compact_left(modality == TEXT)
            # A segment begins where the number of image tokens before the text changes. All these are (n, texts).
            before = (modality == IMAGE).cumsum(1).flatten()[text].masked_fill(~is_text, 0)
            begins = (before != F.pad(before[:, :-1], (1, 0))) & is_text
            count = begins.sum(1, keepdim=True)
            # Counted from the end: the last segment is mostly the longest, and like lengths waste little in one call.
            ordinal = (count - begins.cumsum(1)).masked_fill(before == 0, -1)

            order = count[:, 0].argsort(descending=True, stable=True)
            image, image_slot, _ = compact_left(modality == IMAGE)
            image_slot += (order.argsort() - torch.arange(len(order)))[:, None] * image.shape[1]
            slot = place + torch.where(modality == IMAGE, text.numel() + image_slot, text_slot)
            self.slot[documents.tokens[table[filled]]] = slot[filled]
            place += text.numel() + image.numel()
            keys += [tokens[text].flatten(), tokens[image[order]].flatten()]
            queries.append(tokens[text].flatten())
            block = Block(len(chosen), text.shape[1], image.shape[1])
            for number in range(int(count.max())):
                some = order[: int((count > number).sum())]
                inside = ordinal[some] == number
                places, _, is_query = compact_left(inside)
                segment = tokens[text[some].flatten()[places]]
                queries.append(segment.flatten())
                targets.append(segment.masked_fill(~is_query, total).flatten())
                key_lengths = before[some].masked_fill(~inside, 0).amax(1)
                mask = torch.arange(int(key_lengths.max())) < key_lengths[:, None, None, None]
                block.segments.append(
                    SegmentGroup(len(some), segment.shape[1], mask.shape[-1], None if mask.all() else mask)
                )
            self.blocks.append(block)
        self.key_index, self.query_index = torch.cat(keys), torch.cat(queries)
        self.target = torch.cat(targets) if targets else None

    def joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Causal attention within each document. Returns (B, T, H, D)."""
        if self.token_index is None:
            return sdpa(query, key, value, causal=True)
        batch, count, length = query.shape[:3]
        sizes = [block.rows * block.texts for block in self.token_blocks]
        parts = [select_rows(merge_heads(x), self.token_index).split(sizes) for x in (query, key, value)]
        out = [
            sdpa(
                *(split_heads(part, block.rows, x.shape[1]) for part, x in zip(some, (query, key, value), strict=True)),
                causal=True,
            )
            for block, *some in zip(self.token_blocks, *parts, strict=True)
        ]
        out = select_rows(torch.cat([part.flatten(0, 1).flatten(1) for part in out]), self.token_slot)
        return out.view(batch, length, count, -1)

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Causal attention at text tokens; at image tokens their own value. Returns (B, T, H, D)."""
        return torch.where(self.own, self_values(value, query), self.joint(sdpa, query, key, value, layer))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        (batch, count, length), groups = query.shape[:3], key.shape[1]
        key_sizes, query_sizes = [], []
        for block in self.blocks:
            key_sizes += [block.rows * block.texts, block.rows * block.images]
            query_sizes += [key_sizes[-2], *(segment.rows * segment.length for segment in block.segments)]
        keys, values = (iter(select_rows(merge_heads(x), self.key_index).split(key_sizes)) for x in (key, value))
        queries = iter(select_rows(merge_heads(query), self.query_index).split(query_sizes))
        out, images = [], []
        for block in self.blocks:
            text_key, image_key = (split_heads(next(keys), block.rows, groups) for _ in range(2))
            text_value, image_value = (split_heads(next(values), block.rows, groups) for _ in range(2))
            text = sdpa(split_heads(next(queries), block.rows, count), text_key, text_value, causal=True)
            own = image_value.transpose(1, 2).repeat_interleave(count // groups, 2)
            out += [text.flatten(0, 1).flatten(1), own.flatten(0, 1).flatten(1)]
            for segment in block.segments:
                seen = (slice(segment.rows), slice(None), slice(segment.key_length))
                part = split_heads(next(queries), segment.rows, count)
                image = sdpa(part, image_key[seen], image_value[seen], mask=segment.key_mask)
                images.append(image.flatten(0, 1).flatten(1))
        out = select_rows(torch.cat(out), self.slot)
        if images:
            out.index_add_(0, self.target, torch.cat(images))
        return out[:-1].view(batch, length, count, -1)


def _alike(texts: Tensor, images: Tensor) -> Iterable[Tensor]:
    """Yield groups of document numbers (n,) of similar size, so that padding them to the largest wastes little."""
    texts, images = texts.tolist(), images.tolist()
    order = sorted(range(len(texts)), key=lambda number: (-texts[number], -images[number]))

    def pairs(text: int, image: int) -> int:
        return text * text // 2 + text * image + image

    group, real, most = [], 0, 0
    for number in order:
        widest, own = max(most, images[number]), pairs(texts[number], images[number])
        padded = (len(group) + 1) * pairs(texts[group[0]] if group else texts[number], widest)
        if group and padded > _WASTE * (real + own) + _FREE_PAIRS:
            yield torch.tensor(group)
            group, real, widest = [], 0, images[number]
        group.append(number)
        real, most = real + own, widest
    if group:
        yield torch.tensor(group)
