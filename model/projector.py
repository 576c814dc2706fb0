"""Projectors: from what the vision tower gives to embeddings of the language model.

A new projector is one class with a `build` and one entry in `PROJECTORS`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration import VisualChatConfig
from .resampler import Resampler

_HEAD_WIDTH = {"vit": 64, "perceiver": 128}


class Projector(nn.Module):
    """What all projectors share. `feature_shape` is the shape (tokens, width) of one image from the tower."""

    feature_shape: tuple[int, int]

    def blank(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The features of an image that is not there: zeros (1, tokens, width)."""
        return torch.zeros(1, *self.feature_shape, device=device, dtype=dtype)


class LinearProjector(Projector):
    """A linear layer and a LayerNorm, the projector of the paper (arXiv 2309.14327, section 3)."""

    def __init__(self, config: VisualChatConfig):
        super().__init__()
        self.feature_shape = (config.vision_tokens, config.vision_config.hidden_size)
        self.linear = nn.Linear(self.feature_shape[1], config.text_config.hidden_size)
        self.norm = nn.LayerNorm(config.text_config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """(..., vision width) -> (..., text width)"""
        return self.norm(self.linear(features))


class MLPProjector(Projector):
    """Two linear layers with a GELU between them, the projector of LLaVA-1.5 (arXiv 2310.03744)."""

    def __init__(self, config: VisualChatConfig):
        super().__init__()
        self.feature_shape = (config.vision_tokens, config.vision_config.hidden_size)
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(self.feature_shape[1], width)
        self.activation = nn.GELU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., vision width) -> (..., text width)"""
        return self.linear_2(self.activation(self.linear_1(features)))


class ViTProjector(LinearProjector):
    """One more layer like the encoder's (pre-norm self-attention and MLP), then `linear`."""

    def __init__(self, config: VisualChatConfig):
        super().__init__(config)
        width = self.feature_shape[1]
        self.layer = nn.TransformerEncoderLayer(
            d_model=width,
            nhead=_heads(width, "vit"),
            dim_feedforward=4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, tokens, vision width) -> (N, tokens, text width)"""
        return super().forward(self.layer(features))


class PerceiverProjector(Projector):
    """A resampler of `projector_queries` learned queries, a LayerNorm and a linear layer; it reads patches alone."""

    def __init__(self, config: VisualChatConfig):
        super().__init__()
        self.feature_shape, self.patches = (
            (config.vision_tokens, config.vision_config.hidden_size),
            config.vision_patches,
        )
        width = self.feature_shape[1]
        self.resampler = Resampler(config.projector_queries, width, _heads(width, "perceiver"), width)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """(N, tokens, vision width) -> (N, queries, text width)"""
        return self.linear(self.norm(self.resampler(features[:, -self.patches :])))


PROJECTORS = {
    "linear": LinearProjector,
    "mlp": MLPProjector,
    "vit": ViTProjector,
    "perceiver": PerceiverProjector,
}


def build_projector(config: VisualChatConfig) -> Projector:
    """Build the projector that the configuration names."""
    return PROJECTORS[config.projector](config)


def _heads(width: int, kind: str) -> int:
    """As many heads as have the usual width; one if that does not divide `width`."""
    return width // _HEAD_WIDTH[kind] if width % _HEAD_WIDTH[kind] == 0 else 1
