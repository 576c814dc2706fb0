"""The configuration of a VisualChat model: which encoder, which decoder, and how the two are joined.

Saved as config.json in a model's folder. The encoder's and the decoder's own configurations are kept whole inside it
(`vision_config`, `text_config`), so any encoder and decoder of `transformers` can be used.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .template import Template

CHOICES = {
    "attention": ("mmca", "causal", "dattn"),
    "vision_class_token": ("drop", "keep"),
}


class QwenVisionConfig(PreTrainedConfig):
    """The configuration of Qwen-VL's vision encoder (qwen_vision.py); the defaults are those of the published one.

    hidden_size: width of the output. vit_width: width of the blocks.
    positions: learned positions of patches, a square number; interpolated to those of the image.
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
    """The configuration of a VisualChat model. Raises ValueError for an invalid choice or template.

    vision_config, text_config: of the encoder and the decoder, as objects or dictionaries; objects after construction.
    attention: 'mmca', 'causal' or 'dattn', see attention.py.
    projector: the name of a class in projector.py. Checked when the model is built, because that module imports torch.
    projector_queries: number of tokens of an image with the projector 'perceiver'; a square number.
    vision_feature_layer: index into the encoder's hidden states; -1 is its output.
    vision_class_token: 'drop' or 'keep' the tokens that are not patches (class and register tokens).
    image_size: side in pixels of the square images that the encoder gets; the encoder's own if None.
    vision_tokens: number of tokens of an image from the tower, before the projector.
    image_token_id: the placeholder's id. image_tokens: the number of placeholders of an image.
    image_mean, image_std: per channel, for values from 0 to 1; the model normalises, batches hold uint8.
    template: the texts around questions, answers and images, see template.py.
    """

    model_type: ClassVar[str] = "visualchat"
    sub_configs_defaults: ClassVar[dict] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: Any = None
    text_config: Any = None
    attention: str = "mmca"
    projector: str = "linear"
    projector_queries: int = 256
    vision_feature_layer: int = -1
    vision_class_token: str = "drop"  # noqa: S105 - not a password
    image_size: int | None = None
    vision_tokens: int | None = None
    image_token_id: int = 0
    image_tokens: int = 1
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    template: dict[str, str | bool] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
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
            self.image_size = getattr(self.vision_config, "image_size", None) or self._largest_square()
        if self.vision_tokens is None:
            class_tokens = 1 if self.vision_class_token == "keep" else 0  # noqa: S105 - not a password
            self.vision_tokens = self.vision_patches + class_tokens

    @property
    def vision_patches(self) -> int:
        """The number of the encoder's tokens without class and register tokens: patches, or resampled ones."""
        assert self.image_size is not None  # set in `__post_init__`
        resampled = getattr(self.vision_config, "resampler_queries", None)
        return resampled or (self.image_size // self.vision_config.patch_size) ** 2

    @property
    def feature_shape(self) -> tuple[int, int]:
        """The shape (tokens, width) of the features of an image from the tower."""
        assert self.vision_tokens is not None  # set in `__post_init__`
        return self.vision_tokens, self.vision_config.hidden_size

    def _largest_square(self) -> int:
        """The side in pixels of the square with all patches of an encoder for images of any shape (SigLIP 2)."""
        return self.vision_config.patch_size * math.isqrt(self.vision_config.num_patches)


AutoConfig.register(VisualChatConfig.model_type, VisualChatConfig, exist_ok=True)
AutoConfig.register(QwenVisionConfig.model_type, QwenVisionConfig, exist_ok=True)
