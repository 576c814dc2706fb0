"""Rotary position embedding as a separate operation: keys computed at position 0 are rotated to any other position.

Decoders rotate their keys inside the attention module, each in its own way: in halves or in pairs, all of a head or
part of it, in all layers or only some. `KeyRotation.detect` needs no list of decoders: it computes the keys of two
random tokens at position 0 and at others, finds for each layer the style of rotation that explains the difference, and
refuses a decoder where none does. So a cached image can never be rotated wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KeysAndValues = Sequence[tuple[Tensor, Tensor]]

# Rotary types whose frequencies depend on the length of the sequence: keys cannot be rotated afterwards.
_DEPENDS_ON_LENGTH = ("dynamic", "longrope")
_TEST_POSITIONS = (3, 17)
_STYLES = ("none", "halves", "pairs")


@dataclass(frozen=True)
class KeyRotation:
    """How each layer rotates its keys: 'none', 'halves' or 'pairs', with the decoder's own frequencies."""

    rotary: nn.Module | None
    styles: tuple[str, ...]
    paired: bool = False  # the decoder lists its angles in pairs (a a b b), not in halves (a b a b)

    @classmethod
    def detect(cls, decoder: nn.Module, keys_at: Callable[[Tensor], KeysAndValues]) -> KeyRotation:
        """Find out how `decoder` rotates its keys.

        `keys_at` takes positions (1, 2) and returns for every layer the keys and values (1, G, 2, D) of two tokens, the
        same at each call, each of which attends to itself alone.

        Raises ValueError if the keys at one position cannot be computed from those at another.
        """
        rotary = getattr(decoder, "rotary_emb", None)
        rope_type = getattr(rotary, "rope_type", "default")
        if rope_type in _DEPENDS_ON_LENGTH:
            raise ValueError(f"rotary positions of type {rope_type!r} depend on the length of the conversation")
        device = next(decoder.parameters()).device
        positions = torch.tensor([_TEST_POSITIONS], device=device)
        at_zero, at_positions = keys_at(torch.zeros_like(positions)), keys_at(positions)
        cosine = torch.ones(1, 2, 2) if rotary is None else rotary(at_zero[0][0][0], positions)[0]
        paired = torch.equal(cosine[..., 0::2], cosine[..., 1::2])
        styles = []
        for layer, ((key, value), (moved_key, moved_value)) in enumerate(zip(at_zero, at_positions, strict=True)):
            tolerance = 1e-4 if key.dtype == torch.float32 else 3e-2
            matching = [
                style
                for style in (_STYLES if rotary is not None else ("none",))
                if _distance(cls(rotary, (style,), paired).rotate([key[0]], positions[0])[0], moved_key[0]) < tolerance
            ]
            if not matching or _distance(value, moved_value) > tolerance:
                raise ValueError(f"layer {layer} does not rotate its keys, and nothing else, by the position")
            styles.append(matching[0])
        return cls(rotary, tuple(styles), paired)

    def rotate(self, keys: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
        """Rotate the keys (G, n, D) of every layer from position 0 to `positions` (n,)."""
        if self.rotary is None:
            return list(keys)
        scaling = getattr(self.rotary, "attention_scaling", 1.0)
        cosine, sine = (x[0] / scaling for x in self.rotary(keys[0], positions[None]))
        if self.paired:
            cosine, sine = (x[:, 0::2].repeat(1, 2) for x in (cosine, sine))
        return [
            key if style == "none" else _rotated(key, cosine.to(key.device), sine.to(key.device), style == "pairs")
            for key, style in zip(keys, self.styles, strict=True)
        ]


def _rotated(key: Tensor, cosine: Tensor, sine: Tensor, pairs: bool) -> Tensor:
    """Rotate keys (G, n, D) by angles whose cosines and sines are (n, R), in halves (a b a b)."""
    rotating, rest = key[..., : cosine.shape[-1]], key[..., cosine.shape[-1] :]
    if pairs:
        cosine, sine = (x.chunk(2, -1)[0].repeat_interleave(2, -1) for x in (cosine, sine))
        other = torch.stack((-rotating[..., 1::2], rotating[..., 0::2]), -1).flatten(-2)
    else:
        first, second = rotating.chunk(2, -1)
        other = torch.cat((-second, first), -1)
    return torch.cat((rotating * cosine + other * sine, rest), -1)


def _distance(x: Tensor, y: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((x - y).abs().max() / y.abs().max().clamp(min=1e-9)).item()
