"""Conversations of different lengths in one batch, which rows join and leave between two forwards.

A server answers many people at once: a forward over 32 rows of one token costs little more than over one row, but the
people come and go, and each has read and said a different amount. `ConversationBatch` holds what the model keeps of each of them,

    take    the rows that go on, or one that leaves, as a batch of their own
    joined  several batches as one
    cut     a row back to its first tokens, from where another conversation goes on

and never computes anything twice. Rows are kept aligned on the right, so what is appended next lies in one column and
the padding on the left disappears with the longest row. Every kind of attention is served: images apart from text
where their states are their own ('mmca', 'dattn'), or all tokens in one cache ('causal').

Shapes: B rows, K tokens (the longest row's), Kt and Ki those of text and of images, T new tokens, G key-value heads,
D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """What a model keeps of B conversations. Empty ones begin with `ConversationBatch.empty`.

    `modality` (B, K) on the CPU tells padding, text and images apart. `text` and `images` hold the keys and values of each
    layer, (B, G, Kt, D) and (B, G, Ki, D); `text_slots` (B, Kt) and `image_slots` (B, Ki), on the CPU too, of which
    of the K tokens each is (-1: of none). Where images are not kept apart, `text` is of all tokens.
    """

    model: VisualChatForConditionalGeneration
    modality: Tensor
    text_slots: Tensor
    image_slots: Tensor
    text: Layers = field(default_factory=list)
    images: Layers = field(default_factory=list)

    @classmethod
    def empty(cls, model: VisualChatForConditionalGeneration, rows: int = 1) -> ConversationBatch:
        """Conversations in which nothing was said."""
        nothing = torch.zeros(rows, 0, dtype=torch.int64)
        return cls(model, nothing, nothing, nothing)

    def __len__(self) -> int:
        """B"""
        return len(self.modality)

    @property
    def lengths(self) -> list[int]:
        """The tokens of each row, without padding."""
        return (self.modality != PAD).sum(1).tolist()

    @property
    def nbytes(self) -> int:
        """Memory that the keys and values take."""
        return sum(x.nbytes for pair in (*self.text, *self.images) for x in pair)

    @torch.inference_mode()
    def extend(
        self, tokens: Sequence[Sequence[int]], modality: Sequence[Sequence[int]], images: dict[str, Any]
    ) -> tuple[Tensor, ConversationBatch]:
        """Append new tokens to every row, at least one each, the last of them text.

        `modality` tells text (1) and images (2) apart; `images` is what `ImageCache.inputs` returns for the images among
        the new tokens, row by row. Returns the logits (B, vocabulary) behind the last token of each row, and the batch
        with these tokens; the old one stays valid.
        """
        width = max(map(len, tokens))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in tokens], device=self.model.device)
        new = torch.tensor([[PAD] * (width - len(row)) + list(row) for row in modality])
        modality = torch.cat((self.modality, new), 1)
        cache = self._cache()
        out = self.model(
            input_ids=ids, modality=modality, past_key_values=cache, logits_to_keep=1, use_cache=True, **images
        )
        return out.logits[:, -1], self._after(cache, modality)

    def select_rows(self, rows: Sequence[int]) -> ConversationBatch:
        """The given rows as a batch of their own, which takes no more memory than they need."""
        here = torch.tensor(rows, dtype=torch.int64)
        chosen = replace(
            self,
            modality=self.modality[here],
            text_slots=self.text_slots[here],
            image_slots=self.image_slots[here],
            text=_mapped(self.text, lambda x: x.index_select(0, here.to(x.device))),
            images=_mapped(self.images, lambda x: x.index_select(0, here.to(x.device))),
        )
        return chosen._aligned()

    def truncate(self, length: int) -> ConversationBatch:
        """The first `length` tokens of a batch of one row that is aligned, as `take` returns it."""
        texts = int((self.text_slots[0] < length).sum())
        images = int((self.image_slots[0] < length).sum())
        return replace(
            self,
            modality=self.modality[:, :length],
            text_slots=self.text_slots[:, :texts],
            image_slots=self.image_slots[:, :images],
            text=_mapped(self.text, lambda x: x[:, :, :texts]) if texts else [],
            images=_mapped(self.images, lambda x: x[:, :, :images]) if images else [],
        )

    @staticmethod
    def concat(batches: Sequence[ConversationBatch]) -> ConversationBatch:
        """One batch of the rows of several, in their order."""
        if len(batches) == 1:
            return batches[0]
        length = max(batch.modality.shape[1] for batch in batches)
        shifts = [length - batch.modality.shape[1] for batch in batches]
        modality = torch.cat([F.pad(batch.modality, (shift, 0)) for batch, shift in zip(batches, shifts, strict=True)])
        parts = {}
        for name in ("text", "image"):
            places = [getattr(batch, f"{name}_places") for batch in batches]
            width = max(place.shape[1] for place in places)
            moved = [
                F.pad(torch.where(place < 0, -1, place + shift), (width - place.shape[1], 0), value=-1)
                for place, shift in zip(places, shifts, strict=True)
            ]
            layers = [batch.text if name == "text" else batch.images for batch in batches]
            parts[name] = torch.cat(moved), _stacked(layers, [len(batch) for batch in batches], width)
        (text_slots, text), (image_slots, images) = parts["text"], parts["image"]
        return ConversationBatch(batches[0].model, modality, text_slots, image_slots, text, images)._aligned()

    def _cache(self) -> DynamicCache:
        """The cache that a forward continues. It shares memory with this batch and changes none of it."""
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

    def _after(self, cache: DynamicCache, modality: Tensor) -> ConversationBatch:
        """The batch that a forward left in `cache`."""
        text = [(layer.keys, layer.values) for layer in cache.layers]
        if isinstance(cache, ConversationCache):
            images = cache.image_slots if cache.images else self.image_slots
            after = ConversationBatch(self.model, cache.modality, cache.text_slots, images, text, cache.images)
        else:
            places = torch.where(modality != PAD, torch.arange(modality.shape[1]), -1)
            after = ConversationBatch(self.model, modality, places, self.image_slots, text, [])
        return after._aligned()

    def _aligned(self) -> ConversationBatch:
        """The same rows with all their padding on the left, and no more of it than the longest row leaves."""
        order, most = _order(self.modality != PAD)
        if order is None and most == self.modality.shape[1]:
            modality, moved = self.modality, None
        else:
            order = torch.arange(self.modality.shape[1]).expand_as(self.modality) if order is None else order
            modality = self.modality.gather(1, order)[:, order.shape[1] - most :]
            moved = order.argsort(1) - (order.shape[1] - most)
        text_slots, text = _arranged(self.text_slots, moved, self.text)
        image_slots, images = _arranged(self.image_slots, moved, self.images)
        return ConversationBatch(self.model, modality, text_slots, image_slots, text, images)


def _order(used: Tensor) -> tuple[Tensor | None, int]:
    """How to move the used columns of each row of `used` (B, L) to its right: an index (B, L), None if they are there.

    Also returns how many columns the fullest row uses.
    """
    width, counts = used.shape[1], used.sum(1)
    most = int(counts.max()) if width else 0
    there = torch.arange(width) >= width - counts[:, None]
    return (None if torch.equal(used, there) else used.long().argsort(stable=True, dim=1)), most


def _arranged(places: Tensor, moved: Tensor | None, layers: Layers) -> tuple[Tensor, Layers]:
    """Rename `places` (B, n) by `moved` (B, K), and move the used columns of all layers to the right."""
    if moved is not None and places.shape[1]:
        places = torch.where(places < 0, -1, moved.gather(1, places.clamp(min=0)))
    order, most = _order(places >= 0)
    first = places.shape[1] - most
    if order is not None:
        order = order[:, first:]
        return places.gather(1, order), _mapped(layers, lambda x: _columns(x, order)) if most else []
    if first:
        # A copy, because a view would keep the columns in memory that nobody uses any more.
        layers = _mapped(layers, lambda x: x[:, :, first:].clone()) if most else []
    return places[:, first:], layers


def _columns(x: Tensor, order: Tensor) -> Tensor:
    """(B, G, n, D) -> (B, G, m, D): the columns `order` (B, m) of each row."""
    index = order.to(x.device)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index)


def _stacked(parts: Sequence[Layers], rows: Sequence[int], width: int) -> Layers:
    """Layers of several batches of `rows` rows as layers of one of `width` columns, zeros on the left."""
    some = next((layers for layers in parts if layers), None)
    if some is None:
        return []

    def padded(layers: Layers, count: int, layer: int, which: int) -> Tensor:
        like = some[layer][which]
        x = layers[layer][which] if layers else like.new_zeros(count, like.shape[1], 0, like.shape[3])
        return F.pad(x, (0, 0, width - x.shape[2], 0))

    return [
        tuple(
            torch.cat([padded(layers, count, layer, which) for layers, count in zip(parts, rows, strict=True)])
            for which in (0, 1)
        )
        for layer in range(len(some))
    ]


def _mapped(layers: Layers, change: Any) -> Layers:
    return [(change(keys), change(values)) for keys, values in layers]
