"""The cache of a conversation: keys and values of its text, and, separate from them, those of its images.

A forward over a `ConversationCache` computes text alone. The layers of the DynamicCache of `transformers` hold the
text; the states of images (`image_states.py`) are put beside it, rotated to their positions. It serves 'mmca' and
'dattn', where the states of an image depend on nothing but the image; with 'causal' attention an ordinary DynamicCache
holds all tokens.

Each key belongs to one of the K tokens of its row, its *slot*; slot -1 marks padding.

Shapes: B rows, K tokens so far, T tokens of this forward, N text tokens of this forward, Kt and Ki cached keys of text
and of images, G key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from .attention_plan import AttentionPlan
from .documents import IMAGE, PAD, TEXT, compact_left
from .image_states import ImageStates
from .masks import SplitCacheSdpa, unless_all
from .rotation import KeyRotation


@dataclass
class TextStep:
    """The text of a forward over a conversation cache, compacted to the left of each row.

    `index` (B, N) is the position of each text token among the T new ones, `filled` (B, N) where there is one;
    `positions` (B, N) and `attention_plan` are for the decoder.
    """

    index: Tensor
    filled: Tensor
    positions: Tensor
    attention_plan: AttentionPlan

    def select_text(self, x: Tensor) -> Tensor:
        """Select the text tokens: (B, T, width) -> (B, N, width)."""
        return x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))

    def scatter_text(self, x: Tensor, length: int) -> Tensor:
        """Put every text token back into its position, zeros elsewhere: (B, N, width) -> (B, `length`, width)."""
        x = x * self.filled[..., None]
        out = x.new_zeros(len(x), length, x.shape[-1])
        return out.scatter_add(1, self.index[..., None].expand_as(x), x)


class ConversationCache(DynamicCache):
    """The keys and values of conversations, images separate from text.

    To `generate` it is a cache of all tokens seen so far, images included. `modality` (B, K) holds their kind;
    `text_slots` (B, Kt) and `image_slots` (B, Ki) the slot of each key; `images` the keys and values (B, G, Ki, D) of
    images for each layer. The first three are on the CPU and None in an empty cache (`image_slots`: without images).
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        """`config` is the model's, or its decoder's."""
        super().__init__(config=config.get_text_config(decoder=True))
        self.modality: Tensor | None = None
        self.text_slots: Tensor | None = None
        self.image_slots: Tensor | None = None
        self.images: list[tuple[Tensor, Tensor]] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of tokens so far, K."""
        return 0 if self.modality is None else self.modality.shape[1]

    @torch.compiler.disable
    def prepare_step(
        self, modality: Tensor, states: Sequence[ImageStates], rotation: KeyRotation, device: torch.device
    ) -> TextStep:
        """Add the modality (B, T) of new tokens and the states of the images among them, in reading order.

        Call it once per forward, before the decoder. Returns the text of the forward, with tensors on `device`.

        Raises ValueError if the images do not match their placeholders.
        """
        modality = modality.detach().cpu().to(torch.int64)
        past, length = self.get_seq_length(), modality.shape[1]
        all_modality = modality if self.modality is None else torch.cat((self.modality, modality), 1)
        self.modality = all_modality
        positions = ((all_modality != PAD).cumsum(1) - 1).clamp(min=0)[:, past:]
        self._add_images(modality == IMAGE, states, positions, past, rotation)
        index, _, filled = compact_left(modality == TEXT)
        index = (index - torch.arange(len(modality))[:, None] * length).masked_fill(~filled, 0)
        new_slots = (past + index).masked_fill(~filled, -1)
        first_text = self.text_slots is None or not self.text_slots.shape[1]
        if self.text_slots is None or first_text:
            self.text_slots = new_slots
        else:
            self.text_slots = torch.cat((self.text_slots, new_slots), 1)
        return TextStep(
            index=index.to(device),
            filled=filled.to(device),
            positions=positions.gather(1, index).to(device),
            attention_plan=self._plan(new_slots, self.text_slots, first_text).to(device),
        )

    def _plan(self, new_slots: Tensor, text_slots: Tensor, causal: bool) -> AttentionPlan:
        """The plan of text in `new_slots` (B, N), which attends to all text (B, Kt) and images up to itself."""

        def visible(key_slots: Tensor) -> Tensor:
            return ((key_slots >= 0)[:, None] & (key_slots[:, None] <= new_slots[:, :, None]))[:, None]

        # Where all text is new, padding lies behind every query whose result is used.
        text = None if causal else unless_all(visible(text_slots))
        image = no_image = None
        if self.image_slots is not None and self.images:
            image = visible(self.image_slots)
            no_image = ~image.any(-1, keepdim=True)
            # A query without a key would give 0/0: it attends to everything, and its result is not used.
            image, no_image = unless_all(image | no_image), no_image.transpose(1, 2) if no_image.any() else None
        backend = SplitCacheSdpa(self.images, causal, text, image, no_image)
        return AttentionPlan.for_split_cache(backend, (new_slots < 0)[..., None, None], text_slots.shape[1])

    def _add_images(
        self, is_image: Tensor, states: Sequence[ImageStates], positions: Tensor, past: int, rotation: KeyRotation
    ) -> None:
        """Put the states into the slots that `is_image` (B, T) marks, behind `past` tokens, at `positions` (B, T)."""
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
        new_slots = (past + index).masked_fill(~filled, -1)
        (batch, length), columns = filled.shape, slot[is_image]
        keys = [torch.cat(parts, 1) for parts in zip(*(state.keys for state in states), strict=True)]
        values = [torch.cat(parts, 1) for parts in zip(*(state.values for state in states), strict=True)]
        keys = rotation.rotate(keys, positions[is_image].to(keys[0].device))
        new = [
            (_scatter_tokens(key, columns, batch, length), _scatter_tokens(value, columns, batch, length))
            for key, value in zip(keys, values, strict=True)
        ]
        if self.image_slots is None or not self.images:
            self.images, self.image_slots = new, new_slots
            return
        self.images = [
            (torch.cat((key, new_key), 2), torch.cat((value, new_value), 2))
            for (key, value), (new_key, new_value) in zip(self.images, new, strict=True)
        ]
        self.image_slots = torch.cat((self.image_slots, new_slots), 1)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, images among them; their number is given as a negative one."""
        keep = self.get_seq_length() - abs(tokens_to_remove)
        if tokens_to_remove == 0 or self.modality is None or self.text_slots is None:
            return
        self.modality = self.modality[:, :keep]
        self.text_slots, dropped = _crop_slots(self.text_slots, keep)
        super().crop(-dropped)
        if self.image_slots is not None and self.images:
            self.image_slots, _ = _crop_slots(self.image_slots, keep)
            left = self.image_slots.shape[1]
            self.images = [(key[:, :, :left], value[:, :, :left]) for key, value in self.images] if left else []

    def reset(self) -> None:
        """Remove everything."""
        super().reset()
        self.modality = self.text_slots = self.image_slots = None
        self.images = []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row i by row `beam_idx[i]`."""
        super().reorder_cache(beam_idx)
        self._select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        super().batch_select_indices(indices)
        self._select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        if self.modality is not None:
            self._select_rows(torch.arange(len(self.modality)).repeat_interleave(repeats))

    def _select_rows(self, rows: Tensor) -> None:
        if self.modality is None or self.text_slots is None:
            return
        on_cpu = rows.cpu()
        self.modality, self.text_slots = self.modality[on_cpu], self.text_slots[on_cpu]
        if self.image_slots is not None and self.images:
            self.image_slots = self.image_slots[on_cpu]
            self.images = [
                (key.index_select(0, rows.to(key.device)), value.index_select(0, rows.to(value.device)))
                for key, value in self.images
            ]


def _scatter_tokens(x: Tensor, columns: Tensor, batch: int, length: int) -> Tensor:
    """Put tokens (G, M, D) into the flat columns (M,) of a block: (batch, G, length, D), zeros elsewhere."""
    out = x.new_zeros(batch * length, x.shape[0], x.shape[2])
    out[columns.to(x.device)] = x.transpose(0, 1)
    return out.unflatten(0, (batch, length)).transpose(1, 2)


def _crop_slots(slots: Tensor, keep: int) -> tuple[Tensor, int]:
    """Remove the slots from `keep` on, and the columns at the end that are then empty; also returns their number."""
    slots = slots.masked_fill(slots >= keep, -1)
    used = (slots >= 0).any(0).nonzero()
    left = int(used.max()) + 1 if len(used) else 0
    return slots[:, :left], slots.shape[1] - left
