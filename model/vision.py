"""The vision tower: uint8 pixels of images in, features of a fixed number of tokens per image out.

It works with any encoder of `AutoModel` that takes square images of one size: CLIP, SigLIP, SigLIP 2, DINOv2, and
Qwen-VL's with its resampler (qwen_vision.py). Batches hold uint8 pixels, a quarter of the bytes of float32; the tower
normalises them first.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration import QwenVisionConfig, VisualChatConfig
from .qwen_vision import QwenVisionModel


class VisionTower(nn.Module):
    """An encoder with the normalisation before it and the selection of layer and tokens behind it."""

    def __init__(self, config: VisualChatConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.encoder = encoder or AutoModel.from_config(config.vision_config)
        # `transformers` reads these of the parts of a model.
        self._no_split_modules, self._supports_sdpa = self.encoder._no_split_modules, self.encoder._supports_sdpa
        self.mean, self.std = config.image_mean, config.image_std
        self._statistics: dict[torch.device, Tensor] = {}
        self.layer = config.vision_feature_layer
        self.patch_size = config.vision_config.patch_size
        self.patches = config.vision_patches
        self.only_patches = config.vision_class_token == "drop"  # noqa: S105 - not a password
        accepted = inspect.signature(self.encoder.forward).parameters
        # SigLIP 2 takes patches in place of images, because it also supports images of any shape.
        self.takes_patches = "spatial_shapes" in accepted
        self._options: dict[str, bool] = {}
        if "interpolate_pos_encoding" in accepted and config.image_size != config.vision_config.image_size:
            self._options["interpolate_pos_encoding"] = True

    @property
    def config(self) -> PreTrainedConfig:
        """The encoder's configuration."""
        return self.encoder.config

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode images.

        `pixel_values` (N, 3, height, width): uint8, or float if normalised already. Returns features (N, tokens,
        width of the encoder).
        """
        return self.select(self.encode(pixel_values))

    def encode(self, pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        """Run the encoder on images (N, 3, height, width); `options` (output_attentions, ...) are passed on to it."""
        pixels = self.normalise(pixel_values).to(self.encoder.dtype)
        if self.layer != -1:
            options["output_hidden_states"] = True
        options |= self._options
        if not self.takes_patches:
            return self.encoder(pixels, **options)
        side = pixels.shape[-1] // self.patch_size
        # On the CPU, where they are read: from a GPU each of them would be waited for.
        shapes = torch.full((len(pixels), 2), side)
        patches = cut_patches(pixels, self.patch_size)
        return self.encoder(patches, pixel_attention_mask=None, spatial_shapes=shapes, **options)

    def select(self, outputs: BaseModelOutputWithPooling) -> Tensor:
        """Select the configured layer and tokens from the encoder's output: (N, tokens, width)."""
        features = outputs.last_hidden_state if self.layer == -1 else outputs.hidden_states[self.layer]
        # Class and register tokens come first.
        return features[:, -self.patches :] if self.only_patches else features

    def normalise(self, pixel_values: Tensor) -> Tensor:
        """Turn uint8 pixels into normalised float32: (x / 255 - mean) / std. Float pixels pass unchanged."""
        if pixel_values.dtype != torch.uint8:
            return pixel_values
        if pixel_values.device not in self._statistics:
            # Once for each device: the GPU would wait for a copy from the CPU in every batch.
            self._statistics[pixel_values.device] = torch.tensor([self.mean, self.std], device=pixel_values.device)
        mean, std = self._statistics[pixel_values.device].view(2, 1, -1, 1, 1)
        return (pixel_values.float() / 255 - mean) / std


def cut_patches(pixels: Tensor, size: int) -> Tensor:
    """Cut images (N, C, height, width) into patches (N, patches, size * size * C).

    Patches and the pixels of each come row by row, the channels of a pixel together.
    """
    count, channels, height, width = pixels.shape
    grid = pixels.view(count, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, size * size * channels)


AutoModel.register(QwenVisionConfig, QwenVisionModel, exist_ok=True)
