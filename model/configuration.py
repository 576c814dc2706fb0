"""The configuration of a VisualChat model: which encoder, which decoder, and how the two are joined.

Saved as config.json in a model's folder. The encoder's and the decoder's own configurations are kept whole inside it
(`vision_config`, `text_config`), so any encoder and decoder that `transformers` knows can stand there.
"""

from __future__ import annotations

import math
from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .template import Template

CHOICES = {
    "attention": ("mmca", "causal", "dattn"),
    "projector": ("linear", "mlp", "vit", "perceiver"),
    "vision_class_token": ("drop", "keep"),
}


class QwenVisionConfig(PreTrainedConfig):
    """The configuration of Qwen-VL's vision encoder (qwen.py), by default the published one's.

    hidden_size: width of what comes out. vit_width: width of the blocks.
    positions: learned places of patches, a square number; interpolated to those of the image.
    """

    model_type: ClassVar[str] = "visualchat_qwen_vision"

    image_size: int = 448
    patch_size: int = 14
    num_channels: int = 3
    vit_width: int = 1664
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    intermediate_size: int = 8192
    positions: int = 256
    hidden_size: int = 4096
    resampler_queries: int = 256
    resampler_heads: int = 32
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02


class VisualChatConfig(PreTrainedConfig):
    """Raises ValueError for a choice that does not exist and for an unknown key of the template.

    attention: 'mmca', 'causal' or 'dattn', see attention.py.
    projector: 'linear' (a linear layer, then LayerNorm: the paper's), 'mlp', 'vit' or 'perceiver', see projector.py.
    projector_queries: tokens that the projector 'perceiver' makes of an image; a square number.
    vision_feature_layer: index into the encoder's hidden states; -1 is its output.
    vision_class_token: 'drop' or 'keep' the tokens that stand for no patch (class and register tokens).
    image_size: side in pixels of the square images that the encoder gets; its own if None.
    vision_tokens: tokens that the tower makes of an image, before the projector.
    image_token_id: the placeholder's id. image_tokens: the number of placeholders of an image.
    image_mean, image_std: per channel, of values from 0 to 1; the model normalises, batches carry bytes.
    template: the texts around questions, answers and images, see template.py.
    """

    model_type: ClassVar[str] = "visualchat"
    sub_configs_defaults: ClassVar[dict] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    attention: str = "mmca"
    projector: str = "linear"
    projector_queries: int = 256
    vision_feature_layer: int = -1
    vision_class_token: str = "drop"
    image_size: int | None = None
    vision_tokens: int | None = None
    image_token_id: int = 0
    image_tokens: int = 1
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    template: dict[str, str] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}")
        if math.isqrt(self.projector_queries) ** 2 != self.projector_queries:
            raise ValueError(f"projector_queries: {self.projector_queries} is not a square number")
        self.image_mean = list(self.image_mean or [0.5, 0.5, 0.5])
        self.image_std = list(self.image_std or [0.5, 0.5, 0.5])
        self.template = Template.from_dict(self.template or {}).to_dict()
        if self.image_size is None:
            self.image_size = getattr(self.vision_config, "image_size", None) or self._largest_grid()
        if self.vision_tokens is None:
            self.vision_tokens = self.vision_patches + (self.vision_class_token == "keep")

    @property
    def vision_patches(self) -> int:
        """How many of the encoder's tokens stand for places of the image: its patches, or what it resamples them to."""
        resampled = getattr(self.vision_config, "resampler_queries", None)
        return resampled or (self.image_size // self.vision_config.patch_size) ** 2

    def _largest_grid(self) -> int:
        """The side of the square that fills all places of an encoder for images of any shape (SigLIP 2)."""
        return self.vision_config.patch_size * math.isqrt(self.vision_config.num_patches)


AutoConfig.register(VisualChatConfig.model_type, VisualChatConfig, exist_ok=True)
AutoConfig.register(QwenVisionConfig.model_type, QwenVisionConfig, exist_ok=True)
