"""Projectors: from features of the vision tower to embeddings of the language model.

A new projector is one class in this file: `class MyProjector(Projector, name="my")`. The key `models.<name>.projector`
of the configuration, its documentation and the tests follow from the name and the docstring of the class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration import VisualChatConfig
from .resampler import Resampler

PROJECTORS: dict[str, type[Projector]] = {}


class Projector(nn.Module):
    """The base class: it maps features (N, tokens, width) to embeddings (N, image tokens, text width).

    `feature_shape` is the shape (tokens, width) of the features of one image. A subclass is registered in `PROJECTORS`
    under the name that it is declared with.
    """

    def __init_subclass__(cls, name: str) -> None:
        """Register the class.

        Raises:
            ValueError: another class has this name.
        """
        if name in PROJECTORS:
            raise ValueError(f"two projectors have the name {name!r}")
        PROJECTORS[name] = cls

    def __init__(self, config: VisualChatConfig) -> None:
        super().__init__()
        self.feature_shape = config.feature_shape

    def blank(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Zeros in the shape of the features of one image: (1, tokens, width)."""
        return torch.zeros(1, *self.feature_shape, device=device, dtype=dtype)


class LinearProjector(Projector, name="linear"):
    """A linear layer and a LayerNorm, the projector of the paper (arXiv 2309.14327, section 3)."""

    def __init__(self, config: VisualChatConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(self.feature_shape[1], config.text_config.hidden_size)
        self.norm = nn.LayerNorm(config.text_config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (..., vision width) to (..., text width)."""
        return self.norm(self.linear(features))


class MLPProjector(Projector, name="mlp"):
    """Two linear layers with a GELU between them, the projector of LLaVA-1.5 (arXiv 2310.03744)."""

    def __init__(self, config: VisualChatConfig) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(self.feature_shape[1], width)
        self.activation = nn.GELU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (..., vision width) to (..., text width)."""
        return self.linear_2(self.activation(self.linear_1(features)))


class ViTProjector(LinearProjector, name="vit"):
    """A transformer layer (pre-norm self-attention and MLP), then `linear`."""

    def __init__(self, config: VisualChatConfig) -> None:
        super().__init__(config)
        width = self.feature_shape[1]
        self.layer = nn.TransformerEncoderLayer(
            d_model=width,
            nhead=_heads(width, head_width=64),
            dim_feedforward=4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Project features (N, tokens, vision width) to (N, tokens, text width)."""
        return super().forward(self.layer(features))


class PerceiverProjector(Projector, name="perceiver"):
    """A resampler of `projector_queries` learned queries, a LayerNorm and a linear layer; it ignores class tokens."""

    def __init__(self, config: VisualChatConfig) -> None:
        super().__init__(config)
        self.patches = config.vision_patches
        width = self.feature_shape[1]
        self.resampler = Resampler(config.projector_queries, width, _heads(width, head_width=128), width)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (N, tokens, vision width) to (N, queries, text width)."""
        return self.linear(self.norm(self.resampler(features[:, -self.patches :])))


def build_projector(config: VisualChatConfig) -> Projector:
    """Build the projector that the configuration names.

    Raises:
        ValueError: there is no projector of that name.
    """
    if config.projector not in PROJECTORS:
        raise ValueError(f"projector: {config.projector!r} is not one of {', '.join(PROJECTORS)}")
    return PROJECTORS[config.projector](config)


def _heads(width: int, head_width: int) -> int:
    """The number of attention heads of width `head_width`; one if that does not divide `width`."""
    return width // head_width if width % head_width == 0 else 1
