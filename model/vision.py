"""The vision tower: bytes of images in, features of a fixed number of tokens per image out.

Any encoder that `AutoModel` gives a fixed image size and a patch size (CLIP, SigLIP, DINOv2, ...) can stand in it.
Batches carry uint8 pixels, a quarter of the bytes of float32; normalising them is the tower's first act.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModel

from .configuration import VisualChatConfig


class VisionTower(nn.Module):
    """An encoder with the normalisation before it and the choice of tokens behind it."""

    def __init__(self, config: VisualChatConfig, encoder: nn.Module | None = None):
        super().__init__()
        self.encoder = encoder or AutoModel.from_config(config.vision_config)
        self.mean, self.std = config.image_mean, config.image_std
        self.layer = config.vision_feature_layer
        self.patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        self.only_patches = config.vision_class_token == "drop"

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode images.

        `pixel_values` (N, 3, height, width): uint8, or float that is normalised already. Returns (N, image_tokens,
        width of the encoder).
        """
        pixels = self.normalise(pixel_values).to(self.encoder.dtype)
        if self.layer == -1:
            features = self.encoder(pixels).last_hidden_state
        else:
            features = self.encoder(pixels, output_hidden_states=True).hidden_states[self.layer]
        # Class and register tokens come first.
        return features[:, -self.patches :] if self.only_patches else features

    def normalise(self, pixel_values: Tensor) -> Tensor:
        """Turn uint8 pixels into normalised float32: (x / 255 - mean) / std. Float pixels pass unchanged."""
        if pixel_values.dtype != torch.uint8:
            return pixel_values
        mean, std = (torch.tensor(x, device=pixel_values.device).view(1, -1, 1, 1) for x in (self.mean, self.std))
        return (pixel_values.float() / 255 - mean) / std
