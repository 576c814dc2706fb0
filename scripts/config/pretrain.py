"""Settings of the miniature's bases: its tokenizer, its vision encoder and its language model (read by `pretrain`)."""

from typing import Annotated

from pydantic import Field, model_validator

from scripts.config.base import Section

_CODES = 23
"""Values of what a patch shows: 4 quarters, 6 shapes, 8 colours and 2 sizes, and no shape, colour or size."""

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class PretrainTokenizerConfig(Section):
    """A byte-level tokenizer, so that any text can be written in it."""

    vocabulary: Annotated[int, Field(ge=300)] = 440
    """Tokens at most: 256 bytes, the special ones, and merges. Enough for each of the miniature's words to be one
    token."""


class PretrainVisionConfig(Section):
    """A CLIP vision encoder that learns to name what each patch shows."""

    image_size: Positive = 32
    """Side of the images that the encoder sees, in pixels."""
    patch_size: Positive = 16
    """Side of a patch in pixels. An image has (image_size / patch_size)^2 tokens; give the same number in `tokens`."""
    width: Positive = 96
    """Width of the hidden states."""
    layers: Positive = 3
    """Transformer layers."""
    heads: Positive = 4
    """Attention heads; they divide the width."""
    scenes: Positive = 4000
    """Scenes drawn for it, from another seed than the world's images."""
    steps: Positive = 500
    """Optimiser steps. It names nearly every patch right after a few hundred."""
    batch: Positive = 64
    """Scenes per step."""
    learning_rate: Rate = 2.0e-3
    """Peak learning rate."""
    seed: int = 0
    """Seed of its scenes and first weights."""

    @model_validator(mode="after")
    def _divisible(self) -> "PretrainVisionConfig":
        if self.image_size % self.patch_size:
            raise ValueError("patch_size must divide image_size")
        if self.width % self.heads:
            raise ValueError("heads must divide width")
        if self.width < _CODES:
            raise ValueError(f"width must be at least {_CODES}, one dimension for each thing that a patch is taught")
        return self


class PretrainLanguageConfig(Section):
    """A small Llama that has read conversations about scenes described in words, and never seen an image."""

    width: Positive = 128
    """Width of the hidden states. With heads of 32 each it learns to look in fewer steps than a decoder half as
    wide."""
    layers: Positive = 3
    """Transformer layers."""
    heads: Positive = 4
    """Attention heads; they divide the width."""
    rope_theta: Annotated[float, Field(gt=1)] = 1000.0
    """Base of the rotary positions. Small for short conversations: the order of images is told by distance."""
    initial_scale: Annotated[float, Field(gt=0)] = 0.1
    """Standard deviation of the first weights. Larger than a large model's, so that attention is not uniform at
    first."""
    positions: Positive = 4096
    """Longest sequence it is made for."""
    steps: Annotated[int, Field(ge=0)] = 400
    """Optimiser steps; 0 leaves the first weights as they are."""
    batch: Positive = 16
    """Conversations per step."""
    learning_rate: Rate = 4.0e-3
    """Peak learning rate."""
    seed: int = 0
    """Seed of its conversations and first weights."""

    @model_validator(mode="after")
    def _divisible(self) -> "PretrainLanguageConfig":
        if self.width % (2 * self.heads):
            raise ValueError("heads must divide width into even parts")
        return self


class PretrainConfig(Section):
    """How the miniature's bases are made. Real models name pretrained folders instead."""

    tokenizer: PretrainTokenizerConfig = PretrainTokenizerConfig()
    """Its tokenizer."""
    vision: PretrainVisionConfig = PretrainVisionConfig()
    """Its vision encoder."""
    language: PretrainLanguageConfig = PretrainLanguageConfig()
    """Its language model."""
