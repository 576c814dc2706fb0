"""Attention with masks: of queries that continue a cache, and, where a person asks for it, of weights to look at.

A forward that continues a cache has few queries, mostly one, so its masks (B, 1, T, K) are small; whole sequences never
come here (see gather.py), except when attention weights are asked for, which are themselves of size T x T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .documents import IMAGE, PAD, TEXT, self_values
from .sdpa import Sdpa


@dataclass
class Masks:
    """What each of the last T of K tokens reads, as (B, 1, T, K) bool. A query always reads itself."""

    everything: Tensor  # all tokens up to itself
    text: Tensor  # the text among them
    image: Tensor  # the images among them, without itself; a query that would read none reads all, see `no_image`
    no_image: Tensor  # (B, 1, T, 1) bool: queries without an image before them

    @classmethod
    def build(cls, modality: Tensor, length: int, document_ids: Tensor | None = None) -> Masks:
        """Write down what the last `length` tokens of `modality` (B, K) read within their document."""
        place = torch.arange(modality.shape[1])
        before = (place <= place[-length:, None]).expand(len(modality), 1, -1, -1)
        if document_ids is not None:
            before = before & (document_ids[:, None, -length:, None] == document_ids[:, None, None])
        itself = place == place[-length:, None]
        image = (modality == IMAGE)[:, None, None] & before
        # A query that reads nothing would be 0/0: it reads everything, and its answer is not used.
        no_image = ~image.any(-1, keepdim=True)
        text = ((modality == TEXT)[:, None, None] & before) | itself
        return cls(((modality != PAD)[:, None, None] & before) | itself, text, image | no_image, no_image)


@dataclass
class MaskedSdpa:
    """The last T of K tokens, whose keys and values lie in one tensor. Masks that hide nothing are None.

    `own` (B, T, 1, 1) marks queries that are no text; None if there are none.
    """

    own: Tensor | None
    everything: Tensor | None
    text: Tensor | None
    image: Tensor | None
    no_image: Tensor | None  # (B, T, 1, 1)

    @classmethod
    def build(cls, modality: Tensor, length: int, own: Tensor) -> MaskedSdpa:
        """Plan a forward of the last `length` tokens of `modality` (B, K), the others being cached."""
        masks = Masks.build(modality, length)
        no_image = masks.no_image.transpose(1, 2)
        hiding = (unless_all(mask) for mask in (masks.everything, masks.text, masks.image))
        return cls(own if own.any() else None, *hiding, no_image if no_image.any() else None)

    def joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """One softmax over all keys up to the query. Returns (B, T, H, D)."""
        return sdpa(query, key, value, mask=self.everything)

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The same at text tokens; at image tokens their own value."""
        return self._with_own(query, value, sdpa(query, key, value, mask=self.everything))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        image = without(sdpa(query, key, value, mask=self.image), self.no_image)
        return self._with_own(query, value, sdpa(query, key, value, mask=self.text) + image)

    def _with_own(self, query: Tensor, value: Tensor, out: Tensor) -> Tensor:
        return out if self.own is None else torch.where(self.own, self_values(value, query), out)


@dataclass
class SplitCacheSdpa:
    """T text queries whose keys and values lie apart: text in a cache of its own, images given here for every layer.

    `images` holds (keys, values), each (B, G, Ki, D), or is empty. `text` (B, 1, T, Kt) and `image` (B, 1, T, Ki) are
    masks, or None where they hide nothing; `causal` replaces `text` where the queries are all there is.
    """

    images: Sequence[tuple[Tensor, Tensor]]
    causal: bool
    text: Tensor | None
    image: Tensor | None
    no_image: Tensor | None  # (B, T, 1, 1)

    def joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """One softmax over text and images. Returns (B, T, H, D)."""
        if not self.images:
            return sdpa(query, key, value, mask=self.text, causal=self.causal)
        keys, values = self.images[layer]
        shape = (len(query), 1, query.shape[2])
        text, image = self.text, self.image
        if text is None and (self.causal or image is not None or self.no_image is not None):
            text = torch.ones(*shape, key.shape[2], dtype=torch.bool, device=key.device)
            text = text.tril() if self.causal else text
        if text is not None:
            if image is None:
                image = torch.ones(*shape, keys.shape[2], dtype=torch.bool, device=key.device)
            if self.no_image is not None:
                image = image & ~self.no_image.transpose(1, 2)
            text = torch.cat((text, image), 3)
        return sdpa(query, torch.cat((key, keys), 2), torch.cat((value, values), 2), mask=text)

    text_joint = joint

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch. Returns (B, T, H, D)."""
        out = sdpa(query, key, value, mask=self.text, causal=self.causal)
        if self.images:
            out = out + without(sdpa(query, *self.images[layer], mask=self.image), self.no_image)
        return out


def attend_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: Masks,
    own: Tensor,
    *,
    image_rows: str,
    merge: str,
    dropout: float,
    scaling: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention by its formula, for a look at the weights (B, H, T, K), which add up to 2 where two branches do.

    `own` (B, T, 1, 1) marks rows that are no text. Returns (B, T, H, D) and the weights that made it.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    precise = torch.promote_types(scores.dtype, torch.float32)

    def softmax(mask: Tensor) -> Tensor:
        return scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=precise).to(query.dtype)

    joint = softmax(masks.everything)
    weights = joint if merge == "lse" else softmax(masks.text) + softmax(masks.image).masked_fill(masks.no_image, 0)
    itself = torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)[-scores.shape[2] :]
    weights = torch.where(own.transpose(1, 2), joint if image_rows == "causal" else itself, weights)
    weights = torch.nn.functional.dropout(weights, dropout)
    return (weights @ value).transpose(1, 2), weights


def unless_all(mask: Tensor) -> Tensor | None:
    """A mask, or None if it hides nothing."""
    return None if mask.all() else mask


def without(out: Tensor, nothing: Tensor | None) -> Tensor:
    """Zero the rows of `out` (B, T, H, D) that `nothing` (B, T, 1, 1) marks."""
    return out if nothing is None else out.masked_fill(nothing, 0)
