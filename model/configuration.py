"""The configuration of a VisualChat model: which encoder, which decoder, and how the two are joined.

Saved as config.json in a model's folder. The encoder's and the decoder's own configurations are kept whole inside it
(`vision_config`, `text_config`), so any encoder and decoder that `transformers` knows can stand there.
"""

from __future__ import annotations

from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .template import Template

CHOICES = {
    "attention": ("mmca", "causal", "dattn"),
    "projector": ("linear", "mlp"),
    "vision_class_token": ("drop", "keep"),
}


class VisualChatConfig(PreTrainedConfig):
    """Raises ValueError for a choice that does not exist and for an unknown key of the template.

    attention: 'mmca', 'causal' or 'dattn', see attention.py.
    projector: 'linear' (a linear layer, then LayerNorm: the paper's) or 'mlp', see projector.py.
    vision_feature_layer: index into the encoder's hidden states; -1 is its output.
    vision_class_token: 'drop' or 'keep' the tokens that stand for no patch (class and register tokens).
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
    vision_feature_layer: int = -1
    vision_class_token: str = "drop"
    image_token_id: int = 0
    image_tokens: int = 1
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    template: dict[str, str] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(choices)}")
        self.image_mean = list(self.image_mean or [0.5, 0.5, 0.5])
        self.image_std = list(self.image_std or [0.5, 0.5, 0.5])
        self.template = Template.from_dict(self.template or {}).to_dict()


AutoConfig.register(VisualChatConfig.model_type, VisualChatConfig)
