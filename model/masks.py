"""Attention with masks: for queries that continue a cache, and for attention weights when they are requested.

A forward that continues a cache has few queries, mostly one, so its masks (B, 1, T, K) are small; whole sequences never
come here (see sdpa_segments.py), except when attention weights are requested, which are themselves of size T x T.
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
    """What each of the last T of K tokens attends to, as (B, 1, T, K) bool. A query always attends to itself."""

    everything: Tensor  # all tokens up to itself
    text: Tensor  # the text among them
    image: Tensor  # the images among them, without itself; all tokens where there is none, see `no_image`
    no_image: Tensor  # (B, 1, T, 1) bool: queries without an image before them

    @classmethod
    def build(cls, modality: Tensor, length: int, document_ids: Tensor | None = None) -> Masks:
        """Build the masks of the last `length` tokens of `modality` (B, K), each within its document."""
        index = torch.arange(modality.shape[1])
        before = (index <= index[-length:, None]).expand(len(modality), 1, -1, -1)
        if document_ids is not None:
            before = before & (document_ids[:, None, -length:, None] == document_ids[:, None, None])
        itself = index == index[-length:, None]
        image = (modality == IMAGE)[:, None, None] & before
        # A query without a key would give 0/0: it attends to everything, and its result is not used.
        no_image = ~image.any(-1, keepdim=True)
        text = ((modality == TEXT)[:, None, None] & before) | itself
        return cls(((modality != PAD)[:, None, None] & before) | itself, text, image | no_image, no_image)


@dataclass
class MaskedSdpa:
    """The last T of K tokens, whose keys and values are in one tensor. Masks that hide nothing are None.

    `non_text` (B, T, 1, 1) marks queries that are not text; None if there are none.
    """

    non_text: Tensor | None
    everything: Tensor | None
    text: Tensor | None
    image: Tensor | None
    no_image: Tensor | None  # (B, T, 1, 1)

    @classmethod
    def build(cls, modality: Tensor, length: int, non_text: Tensor) -> MaskedSdpa:
        """Plan a forward of the last `length` tokens of `modality` (B, K), the others being cached."""
        masks = Masks.build(modality, length)
        no_image = masks.no_image.transpose(1, 2)
        return cls(
            non_text=non_text if non_text.any() else None,
            everything=unless_all(masks.everything),
            text=unless_all(masks.text),
            image=unless_all(masks.image),
            no_image=no_image if no_image.any() else None,
        )

    def joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """One softmax over all keys up to the query. Returns (B, T, H, D)."""
        return sdpa(query, key, value, mask=self.everything)

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The same at text tokens; at image tokens their own value."""
        return self._with_self_values(query, value, sdpa(query, key, value, mask=self.everything))

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        image = zero_rows(sdpa(query, key, value, mask=self.image), self.no_image)
        return self._with_self_values(query, value, sdpa(query, key, value, mask=self.text) + image)

    def _with_self_values(self, query: Tensor, value: Tensor, out: Tensor) -> Tensor:
        return out if self.non_text is None else torch.where(self.non_text, self_values(value, query), out)


@dataclass
class SplitCacheSdpa:
    """T text queries over two caches: keys and values of text come with the queries, those of images are here.

    `images` holds (keys, values), each (B, G, Ki, D), or is empty. `text` (B, 1, T, Kt) and `image` (B, 1, T, Ki) are
    masks, or None where they hide nothing; `causal` replaces `text` where the cache held no text before.
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
        image_key, image_value = self.images[layer]
        shape = (len(query), 1, query.shape[2])
        text, image = self.text, self.image
        if text is None and (self.causal or image is not None or self.no_image is not None):
            text = torch.ones(*shape, key.shape[2], dtype=torch.bool, device=key.device)
            text = text.tril() if self.causal else text
        if text is not None:
            if image is None:
                image = torch.ones(*shape, image_key.shape[2], dtype=torch.bool, device=key.device)
            if self.no_image is not None:
                image = image & ~self.no_image.transpose(1, 2)
            text = torch.cat((text, image), 3)
        return sdpa(query, torch.cat((key, image_key), 2), torch.cat((value, image_value), 2), mask=text)

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The same: all queries are text."""
        return self.joint(sdpa, query, key, value, layer)

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch. Returns (B, T, H, D)."""
        out = sdpa(query, key, value, mask=self.text, causal=self.causal)
        if self.images:
            image_key, image_value = self.images[layer]
            out = out + zero_rows(sdpa(query, image_key, image_value, mask=self.image), self.no_image)
        return out


def attend_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: Masks,
    non_text: Tensor,
    *,
    image_rows: str,
    merge: str,
    dropout: float,
    scaling: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention by its formula. Returns the output (B, T, H, D) and its weights (B, H, T, K).

    The weights of a query add up to 2 where both branches contribute to a sum. Shapes of the inputs are those of
    `attention.attend`; `non_text` (B, T, 1, 1) marks queries that are not text.
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
    weights = torch.where(non_text.transpose(1, 2), joint if image_rows == "causal" else itself, weights)
    weights = torch.nn.functional.dropout(weights, dropout)
    return (weights @ value).transpose(1, 2), weights


def unless_all(mask: Tensor) -> Tensor | None:
    """The mask, or None if it hides nothing."""
    return None if mask.all() else mask


def zero_rows(out: Tensor, rows: Tensor | None) -> Tensor:
    """Set the rows of `out` (B, T, H, D) to zero that `rows` (B, T, 1, 1) marks; None marks none."""
    return out if rows is None else out.masked_fill(rows, 0)
