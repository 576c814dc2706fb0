"""Projectors: from the width of the vision encoder to the width of the language model, token by token.

A new projector is one class and one line in `PROJECTORS`.
"""

from __future__ import annotations

from torch import Tensor, nn

from .configuration import VisualChatConfig


class LinearProjector(nn.Module):
    """A linear layer and a LayerNorm, the projector of the paper (arXiv 2309.14327, section 3)."""

    def __init__(self, vision_width: int, text_width: int):
        super().__init__()
        self.linear = nn.Linear(vision_width, text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., vision_width) -> (..., text_width)"""
        return self.norm(self.linear(features))


class MLPProjector(nn.Module):
    """Two linear layers with a GELU between them, the projector of LLaVA-1.5 (arXiv 2310.03744)."""

    def __init__(self, vision_width: int, text_width: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, text_width)
        self.activation = nn.GELU()
        self.linear_2 = nn.Linear(text_width, text_width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., vision_width) -> (..., text_width)"""
        return self.linear_2(self.activation(self.linear_1(features)))


PROJECTORS = {"linear": LinearProjector, "mlp": MLPProjector}


def build_projector(config: VisualChatConfig) -> nn.Module:
    """Build the projector that the configuration names."""
    return PROJECTORS[config.projector](config.vision_config.hidden_size, config.text_config.hidden_size)
