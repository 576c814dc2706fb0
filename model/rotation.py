"""Rotary positions as an operation of their own: keys computed at position 0, turned to any other position.

Decoders rotate their keys inside the attention module, each in its own way: in halves or in pairs, all of a head or
part of it, in all layers or only some. Rather than knowing every decoder, `KeyRotation.detect` watches one: it computes
the keys of two random tokens at position 0 and at others, looks for the way of turning that explains the difference,
layer by layer, and refuses a decoder where none does. So a cached image can never be turned wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KeysAndValues = Sequence[tuple[Tensor, Tensor]]

# Frequencies that depend on the length of the sequence cannot be turned to afterwards.
_DEPENDS_ON_LENGTH = ("dynamic", "longrope")
_PLACES = (3, 17)


@dataclass(frozen=True)
class KeyRotation:
    """How each layer turns its keys: 'none', 'halves' or 'pairs', with the decoder's own frequencies."""

    rotary: nn.Module | None
    styles: tuple[str, ...]
    paired: bool = False  # the decoder lists its angles in pairs (a a b b), not in halves (a b a b)

    @classmethod
    def detect(cls, decoder: nn.Module, keys_at: Callable[[Tensor], KeysAndValues]) -> KeyRotation:
        """Find out how `decoder` turns its keys.

        `keys_at` takes positions (1, 2) and returns for every layer the keys and values (1, G, 2, D) of two tokens, the
        same at each call, that read nothing but themselves.

        Raises ValueError if keys and values cannot be had at one position from those at another.
        """
        rotary = getattr(decoder, "rotary_emb", None)
        kind = getattr(rotary, "rope_type", "default")
        if kind in _DEPENDS_ON_LENGTH:
            raise ValueError(f"positions of the kind {kind!r} depend on the length of the conversation")
        device = next(decoder.parameters()).device
        places = torch.tensor([_PLACES], device=device)
        before, after = keys_at(torch.zeros_like(places)), keys_at(places)
        cosine = torch.ones(1, 2, 2) if rotary is None else rotary(before[0][0][0], places)[0]
        paired = torch.equal(cosine[..., 0::2], cosine[..., 1::2])
        styles = []
        for layer, ((key, value), (turned, value_there)) in enumerate(zip(before, after, strict=True)):
            close = 1e-4 if key.dtype == torch.float32 else 3e-2
            found = [
                style
                for style in ("none", "halves", "pairs")
                if (rotary is not None or style == "none")
                and _distance(cls(rotary, (style,), paired).rotate([key[0]], places[0])[0], turned[0]) < close
            ]
            if not found or _distance(value, value_there) > close:
                raise ValueError(f"layer {layer} does not turn its keys, and nothing else, with the position")
            styles.append(found[0])
        return cls(rotary, tuple(styles), paired)

    def rotate(self, keys: Sequence[Tensor], positions: Tensor) -> list[Tensor]:
        """Turn the keys (G, n, D) of every layer from position 0 to `positions` (n,)."""
        if self.rotary is None:
            return list(keys)
        scaling = getattr(self.rotary, "attention_scaling", 1.0)
        angles = [x[0] / scaling for x in self.rotary(keys[0], positions[None])]
        if self.paired:
            angles = [x[:, 0::2].repeat(1, 2) for x in angles]
        return [
            key if style == "none" else _turned(key, *(x.to(key.device) for x in angles), style == "pairs")
            for key, style in zip(keys, self.styles, strict=True)
        ]


def _turned(key: Tensor, cosine: Tensor, sine: Tensor, pairs: bool) -> Tensor:
    """Turn keys (G, n, D) by angles whose cosines and sines are (n, R), in halves (a b a b)."""
    turning, rest = key[..., : cosine.shape[-1]], key[..., cosine.shape[-1] :]
    if pairs:
        cosine, sine = (x.chunk(2, -1)[0].repeat_interleave(2, -1) for x in (cosine, sine))
        other = torch.stack((-turning[..., 1::2], turning[..., 0::2]), -1).flatten(-2)
    else:
        first, second = turning.chunk(2, -1)
        other = torch.cat((-second, first), -1)
    return torch.cat((turning * cosine + other * sine, rest), -1)


def _distance(x: Tensor, y: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((x - y).abs().max() / y.abs().max().clamp(min=1e-9)).item()
