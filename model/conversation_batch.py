"""Conversations of different lengths in one batch, which rows join and leave between two forwards.

A server answers many users at once: a forward over 32 rows of one token costs little more than over one row, but users
come and go, and their conversations have different lengths. `ConversationBatch` holds the keys and values of each, so
that nothing is computed twice:

    extend       append new tokens to every row and compute their logits
    select_rows  some rows as a batch of their own: those that continue, or one that leaves
    concat       several batches as one
    truncate     the first tokens of a row, from which another conversation continues

Rows are aligned on the right, so appended tokens share one column, and padding on the left disappears with the longest
row. Every kind of attention is supported: with 'mmca' and 'dattn' images are separate from text, with 'causal' all
tokens are in one cache.

Shapes: B rows, K tokens (of the longest row), Kt and Ki those of text and of images, T new tokens, G key-value heads,
D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from .conversation_cache import ConversationCache
from .documents import PAD
from .modeling import VisualChatForConditionalGeneration

Layers = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class ConversationBatch:
    """The keys and values of B conversations. New ones begin with `ConversationBatch.empty`.

    `modality` (B, K), on the CPU, is 0 at padding, 1 at text and 2 at images. `text` and `images` hold the keys and
    values of each layer, (B, G, Kt, D) and (B, G, Ki, D); `text_slots` (B, Kt) and `image_slots` (B, Ki), on the CPU
    too, hold which of the K tokens each belongs to (-1: none). Where images are not separate, `text` holds all tokens.
    """

    model: VisualChatForConditionalGeneration
    modality: Tensor
    text_slots: Tensor
    image_slots: Tensor
    text: Layers = field(default_factory=list)
    images: Layers = field(default_factory=list)

    @classmethod
    def empty(cls, model: VisualChatForConditionalGeneration, rows: int = 1) -> ConversationBatch:
        """A batch of `rows` conversations without a token."""
        nothing = torch.zeros(rows, 0, dtype=torch.int64)
        return cls(model, nothing, nothing, nothing)

    def __len__(self) -> int:
        """The number of rows, B."""
        return len(self.modality)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row, without padding."""
        return (self.modality != PAD).sum(1).tolist()

    @property
    def nbytes(self) -> int:
        """The memory of keys and values, in bytes."""
        return sum(x.nbytes for pair in (*self.text, *self.images) for x in pair)

    @torch.inference_mode()
    def extend(
        self, tokens: Sequence[Sequence[int]], modality: Sequence[Sequence[int]], images: dict[str, Any]
    ) -> tuple[Tensor, ConversationBatch]:
        """Append new tokens to every row, at least one each, the last of them text.

        `modality` is 1 at text and 2 at images; `images` is what `ImageCache.model_inputs` returns for the images among
        the new tokens, row by row. Returns the logits (B, vocabulary) of the last token of each row, and the batch with
        these tokens; the old one stays valid.
        """
        width = max(map(len, tokens))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in tokens], device=self.model.device)
        new_modality = torch.tensor([[PAD] * (width - len(row)) + list(row) for row in modality])
        all_modality = torch.cat((self.modality, new_modality), 1)
        cache = self._cache()
        out = self.model(
            input_ids=ids, modality=all_modality, past_key_values=cache, logits_to_keep=1, use_cache=True, **images
        )
        return out.logits[:, -1], self._from_cache(cache, all_modality)

    def select_rows(self, rows: Sequence[int]) -> ConversationBatch:
        """The given rows as a batch of their own, without the memory of the others."""
        index = torch.tensor(rows, dtype=torch.int64)
        selected = replace(
            self,
            modality=self.modality[index],
            text_slots=self.text_slots[index],
            image_slots=self.image_slots[index],
            text=_map_layers(self.text, lambda x: x.index_select(0, index.to(x.device))),
            images=_map_layers(self.images, lambda x: x.index_select(0, index.to(x.device))),
        )
        return selected._aligned()

    def truncate(self, length: int) -> ConversationBatch:
        """The first `length` tokens of a batch of one row."""
        texts = int((self.text_slots[0] < length).sum())
        images = int((self.image_slots[0] < length).sum())
        return replace(
            self,
            modality=self.modality[:, :length],
            text_slots=self.text_slots[:, :texts],
            image_slots=self.image_slots[:, :images],
            text=_map_layers(self.text, lambda x: x[:, :, :texts]) if texts else [],
            images=_map_layers(self.images, lambda x: x[:, :, :images]) if images else [],
        )

    @staticmethod
    def concat(batches: Sequence[ConversationBatch]) -> ConversationBatch:
        """One batch of the rows of several, in their order."""
        if len(batches) == 1:
            return batches[0]
        length = max(batch.modality.shape[1] for batch in batches)
        shifts = [length - batch.modality.shape[1] for batch in batches]
        modality = torch.cat([F.pad(batch.modality, (shift, 0)) for batch, shift in zip(batches, shifts, strict=True)])
        text_slots = _concat_slots([batch.text_slots for batch in batches], shifts)
        image_slots = _concat_slots([batch.image_slots for batch in batches], shifts)
        rows = [len(batch) for batch in batches]
        text = _concat_layers([batch.text for batch in batches], rows, text_slots.shape[1])
        images = _concat_layers([batch.images for batch in batches], rows, image_slots.shape[1])
        return ConversationBatch(batches[0].model, modality, text_slots, image_slots, text, images)._aligned()

    def _cache(self) -> DynamicCache:
        """A cache for a forward that continues this batch. It shares its memory and does not change it."""
        config = self.model.config
        if self.model.supports_image_states:
            cache = ConversationCache(config)
            if self.modality.shape[1]:
                cache.modality, cache.text_slots, cache.image_slots = self.modality, self.text_slots, self.image_slots
                cache.images = list(self.images)
        else:
            cache = DynamicCache(config=config.get_text_config(decoder=True))
        for layer, (keys, values) in zip(cache.layers, self.text, strict=False):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        return cache

    def _from_cache(self, cache: DynamicCache, modality: Tensor) -> ConversationBatch:
        """The batch of `cache` after a forward; `modality` (B, K) is that of all tokens."""
        text = [(layer.keys, layer.values) for layer in cache.layers]
        image_slots, images = self.image_slots, []
        if isinstance(cache, ConversationCache):
            assert cache.text_slots is not None, "the forward filled the cache"
            text_slots = cache.text_slots
            if cache.image_slots is not None and cache.images:
                image_slots, images = cache.image_slots, cache.images
        else:
            text_slots = torch.where(modality != PAD, torch.arange(modality.shape[1]), -1)
        return ConversationBatch(self.model, modality, text_slots, image_slots, text, images)._aligned()

    def _aligned(self) -> ConversationBatch:
        """The same rows with all their padding on the left, and none in the longest row."""
        order, most = _align_right(self.modality != PAD)
        if order is None and most == self.modality.shape[1]:
            modality, new_slots = self.modality, None
        else:
            order = torch.arange(self.modality.shape[1]).expand_as(self.modality) if order is None else order
            modality = self.modality.gather(1, order)[:, order.shape[1] - most :]
            new_slots = order.argsort(1) - (order.shape[1] - most)
        text_slots, text = _align_layers(self.text_slots, new_slots, self.text)
        image_slots, images = _align_layers(self.image_slots, new_slots, self.images)
        return ConversationBatch(self.model, modality, text_slots, image_slots, text, images)


def _align_right(used: Tensor) -> tuple[Tensor | None, int]:
    """How to move the used columns of each row of `used` (B, L) to its right: an index (B, L), None if they are there.

    Also returns the largest number of used columns in a row.
    """
    width, counts = used.shape[1], used.sum(1)
    most = int(counts.max()) if width else 0
    aligned = torch.arange(width) >= width - counts[:, None]
    return (None if torch.equal(used, aligned) else used.long().argsort(stable=True, dim=1)), most


def _align_layers(slots: Tensor, new_slots: Tensor | None, layers: Layers) -> tuple[Tensor, Layers]:
    """Replace `slots` (B, n) by what `new_slots` (B, K) holds there, and move the used columns to the right."""
    if new_slots is not None and slots.shape[1]:
        slots = torch.where(slots < 0, -1, new_slots.gather(1, slots.clamp(min=0)))
    order, most = _align_right(slots >= 0)
    first = slots.shape[1] - most
    if order is not None:
        order = order[:, first:]
        return slots.gather(1, order), _map_layers(layers, lambda x: _gather_columns(x, order)) if most else []
    if first:
        # A copy, because a view would keep the unused columns in memory.
        layers = _map_layers(layers, lambda x: x[:, :, first:].clone()) if most else []
    return slots[:, first:], layers


def _gather_columns(x: Tensor, order: Tensor) -> Tensor:
    """Select the columns `order` (B, m) of each row: (B, G, n, D) -> (B, G, m, D)."""
    index = order.to(x.device)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index)


def _concat_slots(parts: Sequence[Tensor], shifts: Sequence[int]) -> Tensor:
    """The slots (B, n) of several batches as those of one, moved by `shifts` columns, with -1 on the left."""
    width = max(slots.shape[1] for slots in parts)
    moved = [
        F.pad(torch.where(slots < 0, -1, slots + shift), (width - slots.shape[1], 0), value=-1)
        for slots, shift in zip(parts, shifts, strict=True)
    ]
    return torch.cat(moved)


def _concat_layers(parts: Sequence[Layers], rows: Sequence[int], width: int) -> Layers:
    """The layers of several batches of `rows` rows as those of one with `width` columns, zeros on the left."""
    filled = next((layers for layers in parts if layers), None)
    if filled is None:
        return []

    def concat(tensors: Sequence[Tensor | None], like: Tensor) -> Tensor:
        padded = []
        for x, count in zip(tensors, rows, strict=True):
            x = like.new_zeros(count, like.shape[1], 0, like.shape[3]) if x is None else x
            padded.append(F.pad(x, (0, 0, width - x.shape[2], 0)))
        return torch.cat(padded)

    return [
        (
            concat([layers[layer][0] if layers else None for layers in parts], keys),
            concat([layers[layer][1] if layers else None for layers in parts], values),
        )
        for layer, (keys, values) in enumerate(filled)
    ]


def _map_layers(layers: Layers, function: Callable[[Tensor], Tensor]) -> Layers:
    return [(function(keys), function(values)) for keys, values in layers]
