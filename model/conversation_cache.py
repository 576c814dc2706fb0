"""An image computed once: its keys and values in every layer, reused at any place of any conversation.

Where image rows attend to themselves alone ('mmca', 'dattn'), what the decoder makes of an image depends on nothing
but the image: neither on the text around it, nor on its place, once the rotation of its keys is left out. So

    ImageStates        keys (before rotation) and values of one image, layer by layer
    ImageCache         keeps them by the image's pixels, over rounds, conversations and users
    ConversationCache  what a conversation has in view: the keys and values of its text, which the library's layers
                       hold, and those of its images, apart, turned to their places

and a forward over a conversation cache computes text alone. With 'causal' attention an image's states depend on what
precedes it; `ImageCache` then keeps what the vision tower made of it, and the library's own cache does the rest.

Shapes: B rows, K tokens so far, T tokens of this forward, L layers, G key-value heads, D head width, n tokens of an
image.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from .attention_plan import AttentionPlan
from .documents import IMAGE, PAD, TEXT, compact_left
from .masks import SplitCacheSdpa, unless_all
from .rotation import KeyRotation

if TYPE_CHECKING:
    from .modeling import VisualChatForConditionalGeneration

_ROOM = 1 << 30  # bytes


@dataclass(frozen=True)
class ImageStates:
    """One image in every layer: `keys` and `values` are L tensors (G, n, D), the keys as at position 0."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        """n"""
        return self.keys[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(x.nbytes for x in (*self.keys, *self.values))


class ImageCache:
    """Keeps what a model made of images, by their pixels, and forgets what was not used for longest.

    Valid as long as the model's weights stay the same. Several conversations with one model may share it.
    """

    def __init__(self, model: VisualChatForConditionalGeneration, max_bytes: int = _ROOM):
        """`max_bytes` is the memory in bytes that it may take on the model's device."""
        self.model, self.max_bytes, self.nbytes, self.misses = model, max_bytes, 0, 0
        self._kept: OrderedDict[bytes, ImageStates | Tensor] = OrderedDict()

    def model_inputs(self, images: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return the argument of `forward` and `generate` that stands for `images`, each uint8 (3, height, width).

        That is `image_states`, or with 'causal' attention `image_features`; nothing without an image.
        """
        if not images:
            return {}
        names = [hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest() for image in images]
        found = {name: self._kept.get(name) for name in names}
        missing = {name: image for name, image in zip(names, images, strict=True) if found[name] is None}
        if missing:
            self.misses += len(missing)
            pixels = torch.from_numpy(np.stack(list(missing.values()))).to(self.model.device)
            found.update(zip(missing, self._compute(pixels), strict=True))
        for name in names:
            self._keep(name, found[name])
        states = [found[name] for name in names]
        return {"image_states": states} if self.model.supports_image_states else {"image_features": torch.stack(states)}

    def clear(self) -> None:
        """Forget all images, for instance because the model was trained further."""
        self._kept.clear()
        self.nbytes = 0

    def _compute(self, pixels: Tensor) -> Sequence[ImageStates | Tensor]:
        with torch.no_grad():
            if self.model.supports_image_states:
                return self.model.compute_image_states(pixels)
            return self.model.vision_tower(pixels)

    def _keep(self, name: bytes, states: ImageStates | Tensor) -> None:
        if name not in self._kept:
            # A view would keep the whole batch alive.
            self._kept[name] = states.clone() if isinstance(states, Tensor) else states
            self.nbytes += states.nbytes
        self._kept.move_to_end(name)
        while self.nbytes > self.max_bytes and len(self._kept) > 1:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes


@dataclass
class TextStep:
    """A forward over a conversation cache: its text alone, moved together.

    `index` (B, N) is the place of each text token among the T new ones, `filled` (B, N) where there is one;
    `positions` (B, N) and `attention_plan` are for the decoder.
    """

    index: Tensor
    filled: Tensor
    positions: Tensor
    attention_plan: AttentionPlan

    def select_text(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, N, width): the text tokens."""
        return x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))

    def scatter_text(self, x: Tensor, length: int) -> Tensor:
        """(B, N, width) -> (B, T, width): every text token back in its place, zeros elsewhere."""
        x = x * self.filled[..., None]
        out = x.new_zeros(len(x), length, x.shape[-1])
        return out.scatter_add(1, self.index[..., None].expand_as(x), x)


class ConversationCache(DynamicCache):
    """The keys and values of conversations, images apart from text.

    To `generate` it is a cache of all tokens seen so far, images included. `modality` (B, K) tells what they are;
    `text_slots` (B, Kt) and `image_slots` (B, Ki) which of the K tokens each key is of (-1: of none), and `images`
    holds the images' keys and values (B, G, Ki, D) for each layer.
    """

    def __init__(self, config: PreTrainedConfig):
        """`config` is the model's, or its decoder's."""
        super().__init__(config=config.get_text_config(decoder=True))
        self.modality: Tensor | None = None
        self.text_slots: Tensor | None = None
        self.image_slots: Tensor | None = None
        self.images: list[tuple[Tensor, Tensor]] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """K"""
        return 0 if self.modality is None else self.modality.shape[1]

    @torch.compiler.disable
    def prepare_step(
        self, modality: Tensor, states: Sequence[ImageStates], rotation: KeyRotation, device: torch.device
    ) -> TextStep:
        """Take in the modality (B, T) of new tokens and the states of the images among them, in reading order.

        Call it once per forward, before the decoder. Raises ValueError if the images do not fill their places.
        """
        modality = modality.detach().cpu().to(torch.int64)
        past, length = self.get_seq_length(), modality.shape[1]
        self.modality = modality if self.modality is None else torch.cat((self.modality, modality), 1)
        positions = ((self.modality != PAD).cumsum(1) - 1).clamp(min=0)
        self._add_images(modality == IMAGE, states, positions[:, past:], past, rotation)
        index, _, filled = compact_left(modality == TEXT)
        index = (index - torch.arange(len(modality))[:, None] * length).masked_fill(~filled, 0)
        places = (past + index).masked_fill(~filled, -1)
        causal = self.text_slots is None or not self.text_slots.shape[1]
        self.text_slots = places if causal else torch.cat((self.text_slots, places), 1)
        attention_plan = self._layout(places, causal).to(device)
        return TextStep(*(x.to(device) for x in (index, filled, positions[:, past:].gather(1, index))), attention_plan)

    def _layout(self, places: Tensor, causal: bool) -> AttentionPlan:
        """What the text at `places` (B, N) reads: all text and images before it."""

        def before(keys: Tensor) -> Tensor:
            return ((keys >= 0)[:, None] & (keys[:, None] <= places[:, :, None]))[:, None]

        # Where all there is comes now, padding lies behind every query that counts.
        text = None if causal else unless_all(before(self.text_slots))
        image = no_image = None
        if self.images:
            image = before(self.image_slots)
            no_image = ~image.any(-1, keepdim=True)
            # A query that reads nothing would be 0/0: it reads everything, and its answer is not used.
            image, no_image = unless_all(image | no_image), no_image.transpose(1, 2) if no_image.any() else None
        plan = SplitCacheSdpa(self.images, causal, text, image, no_image)
        return AttentionPlan.split(plan, (places < 0)[..., None, None], self.text_slots.shape[1])

    def _add_images(
        self, is_image: Tensor, states: Sequence[ImageStates], positions: Tensor, past: int, rotation: KeyRotation
    ) -> None:
        """Put the states to the places that `is_image` (B, T) marks, whose positions (B, T) are given."""
        counts, tokens = is_image.sum(1), [state.tokens for state in states]
        if int(counts.sum()) != sum(tokens):
            raise ValueError(
                f"the new tokens have {int(counts.sum())} image placeholders, but their {len(states)} images "
                f"{sum(tokens)} tokens"
            )
        if not states:
            return
        if not {0, *counts.cumsum(0).tolist()} <= {0, *accumulate(tokens)}:
            raise ValueError("an image would lie in two conversations: placeholders and images do not match")
        index, slot, filled = compact_left(is_image)
        index = index - torch.arange(len(is_image))[:, None] * is_image.shape[1]
        places = (past + index).masked_fill(~filled, -1)
        shape, where = filled.shape, slot[is_image]
        keys, values = (
            [torch.cat(parts, 1) for parts in zip(*(getattr(state, name) for state in states), strict=True)]
            for name in ("keys", "values")
        )
        keys = rotation.rotate(keys, positions[is_image].to(keys[0].device))
        new = [tuple(_in_rows(x, where, shape) for x in pair) for pair in zip(keys, values, strict=True)]
        if not self.images:
            self.images, self.image_slots = new, places
            return
        self.images = [
            tuple(torch.cat(pair, 2) for pair in zip(old, fresh, strict=True))
            for old, fresh in zip(self.images, new, strict=True)
        ]
        self.image_slots = torch.cat((self.image_slots, places), 1)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, images among them; their number is given below zero."""
        keep = self.get_seq_length() - abs(tokens_to_remove)
        if tokens_to_remove == 0 or self.modality is None:
            return
        self.modality = self.modality[:, :keep]
        self.text_slots, dropped = _cropped(self.text_slots, keep)
        super().crop(-dropped)
        if self.images:
            self.image_slots, dropped = _cropped(self.image_slots, keep)
            left = self.image_slots.shape[1]
            self.images = [(key[:, :, :left], value[:, :, :left]) for key, value in self.images] if left else []

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.modality = self.text_slots = self.image_slots = None
        self.images = []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i become what row `beam_idx[i]` was."""
        super().reorder_cache(beam_idx)
        self._choose_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)
        self._choose_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        if self.modality is not None:
            self._choose_rows(torch.arange(len(self.modality)).repeat_interleave(repeats))

    def _choose_rows(self, rows: Tensor) -> None:
        if self.modality is None:
            return
        here = rows.cpu()
        self.modality, self.text_slots = self.modality[here], self.text_slots[here]
        if self.images:
            self.image_slots = self.image_slots[here]
            self.images = [tuple(x.index_select(0, rows.to(x.device)) for x in pair) for pair in self.images]


def _in_rows(x: Tensor, where: Tensor, shape: tuple[int, int]) -> Tensor:
    """Put tokens (G, M, D) to their places `where` (M,) in a block of `shape` (B, Ki): (B, G, Ki, D), zeros between."""
    out = x.new_zeros(shape[0] * shape[1], x.shape[0], x.shape[2])
    out[where.to(x.device)] = x.transpose(0, 1)
    return out.unflatten(0, shape).transpose(1, 2)


def _cropped(places: Tensor, keep: int) -> tuple[Tensor, int]:
    """Drop the places from `keep` on; also returns how many columns at the end are thereby empty and cut off."""
    places = places.masked_fill(places >= keep, -1)
    used = (places >= 0).any(0).nonzero()
    left = int(used.max()) + 1 if len(used) else 0
    return places[:, :left], places.shape[1] - left
