"""Settings of the miniature's bases: its tokenizer, its vision encoder and its language model (read by `pretrain`)."""

from typing import Annotated

from pydantic import Field, model_validator

from scripts.config.base import Section

_CODES = 23
"""Labels of a patch: 4 quarters, 6 shapes, 8 colours and 2 sizes, and "no shape", "no colour" and "no size"."""

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class PretrainTokenizerConfig(Section):
    """A byte-level BPE tokenizer, which can encode any text."""

    vocabulary: Annotated[int, Field(ge=300)] = 440
    """Most tokens: 256 bytes, special tokens, and merges. The default is enough for every word of the miniature to be
    one token."""


class PretrainVisionConfig(Section):
    """A CLIP vision encoder that is trained to classify what each patch shows."""

    image_size: Positive = 32
    """Side of the encoder's input images in pixels."""
    patch_size: Positive = 16
    """Side of a patch in pixels. An image has (image_size / patch_size)^2 tokens; `tokens` needs the same number."""
    width: Positive = 96
    """Width of the hidden states."""
    layers: Positive = 3
    """Transformer layers."""
    heads: Positive = 4
    """Attention heads; `width` must be divisible by it."""
    scenes: Positive = 4000
    """Scenes generated for its training, with another seed than the miniature's images."""
    steps: Positive = 500
    """Optimizer steps. It classifies nearly every patch correctly after a few hundred."""
    batch: Positive = 64
    """Scenes per step."""
    learning_rate: Rate = 2.0e-3
    """Peak learning rate."""
    seed: int = 0
    """Seed of its scenes and initial weights."""

    @model_validator(mode="after")
    def _divisible(self) -> "PretrainVisionConfig":
        if self.image_size % self.patch_size:
            raise ValueError("patch_size must divide image_size")
        if self.width % self.heads:
            raise ValueError("heads must divide width")
        if self.width < _CODES:
            raise ValueError(f"width must be at least {_CODES}, one dimension for each label of a patch")
        return self


class PretrainLanguageConfig(Section):
    """A small Llama that is trained on text-only conversations about scenes described in words."""

    width: Positive = 128
    """Width of the hidden states. With four heads of 32 it learns to use the images in fewer steps than a decoder of
    half the width."""
    layers: Positive = 3
    """Transformer layers."""
    heads: Positive = 4
    """Attention heads; `width` must be divisible by twice their number."""
    rope_theta: Annotated[float, Field(gt=1)] = 1000.0
    """Base of the rotary positions. Small, because conversations are short and the order of images must be visible."""
    initial_scale: Annotated[float, Field(gt=0)] = 0.1
    """Standard deviation of the initial weights. Larger than that of a large model, so that attention is not uniform in
    the beginning."""
    positions: Positive = 4096
    """Longest sequence in tokens."""
    steps: Annotated[int, Field(ge=0)] = 400
    """Optimizer steps; 0 keeps the initial weights."""
    batch: Positive = 16
    """Conversations per step."""
    learning_rate: Rate = 4.0e-3
    """Peak learning rate."""
    seed: int = 0
    """Seed of its conversations and initial weights."""

    @model_validator(mode="after")
    def _divisible(self) -> "PretrainLanguageConfig":
        if self.width % (2 * self.heads):
            raise ValueError("heads must divide width into even parts")
        return self


class PretrainConfig(Section):
    """How the tokenizer and the base models of the miniature are made. Real models use published ones instead."""

    tokenizer: PretrainTokenizerConfig = PretrainTokenizerConfig()
    """The tokenizer."""
    vision: PretrainVisionConfig = PretrainVisionConfig()
    """The vision encoder."""
    language: PretrainLanguageConfig = PretrainLanguageConfig()
    """The language model."""
