"""VisualChatForConditionalGeneration: a vision tower, a projector and a language model as one model of `transformers`.

    1. tower      pixels of all images of the batch (N, 3, height, width) -> features (N, image_tokens, vision width)
    2. projector  features -> the width of the language model
    3. embedding  the tokens' one embedding; projected features take the place of the image placeholders
    4. decoder    with the attention that the configuration names (attention.py)
    5. head       only where a label is, or at the last token to generate

A batch says where text, images and padding lie with `modality`: 0 padding, 1 text, 2 image. Positions follow from it,
so padding on the left or on the right changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from .attention import IMAGE, TEXT, Layout
from .configuration import VisualChatConfig
from .processing import add_image_token, load_image_processor
from .projector import build_projector
from .template import IGNORE, Template, image_token_id
from .vision import VisionTower


class VisualChatForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """See the module's docstring. Build one with `from_bases` or `from_pretrained`."""

    config_class = VisualChatConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(
        self, config: VisualChatConfig, encoder: nn.Module | None = None, language_model: nn.Module | None = None
    ):
        super().__init__(config)
        refuse_misread_decoder(config.text_config)
        self.vision_tower = VisionTower(config, encoder)
        self.projector = build_projector(config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.language_model.set_attn_implementation(config.attention)
        self.post_init()

    @classmethod
    def from_bases(
        cls,
        vision_folder: Path,
        language_folder: Path,
        tokenizer: Any,
        *,
        template: Template | dict[str, str] | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> VisualChatForConditionalGeneration:
        """Join a vision encoder and a language model, each an ordinary folder of `transformers`, with a new projector.

        `tokenizer` is the language model's. It gets the image placeholder if it lacks it, and only then may the
        embedding grow. `options` are fields of `VisualChatConfig` (attention, projector, vision_feature_layer,
        vision_class_token). `dtype` defaults to the language model's own.
        """
        vision_config = AutoConfig.from_pretrained(vision_folder)
        vision_config = getattr(vision_config, "vision_config", vision_config)
        text_config = AutoConfig.from_pretrained(language_folder)
        refuse_misread_decoder(text_config)
        language = _load_strictly(AutoModelForCausalLM, language_folder, dtype=dtype or "auto")
        encoder = _load_strictly(AutoModel, vision_folder, config=vision_config, dtype=language.dtype)
        add_image_token(tokenizer)
        if len(tokenizer) > language.get_input_embeddings().num_embeddings:
            language.resize_token_embeddings(len(tokenizer), mean_resizing=False)

        language.config.name_or_path = encoder.config.name_or_path = ""  # a folder must not depend on where it was made
        images = load_image_processor(vision_folder)
        config = VisualChatConfig(
            vision_config=encoder.config,
            text_config=language.config,
            image_token_id=image_token_id(tokenizer),
            image_mean=images.image_mean if images.do_normalize else [0.0] * 3,
            image_std=images.image_std if images.do_normalize else [1.0] * 3,
            template=template.to_dict() if isinstance(template, Template) else template,
            # Without it the library would set the attention of both parts to nothing.
            attn_implementation={"vision_config": encoder.config._attn_implementation},
            **options,
        )
        model = cls(config, encoder, language).to(language.dtype).eval()
        side = vision_config.image_size
        with torch.no_grad():
            config.image_tokens = model.vision_tower(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            suppress_tokens=[config.image_token_id],
        )
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **options: Any):
        """Load a model's folder, strictly: ValueError if a weight is missing or one too many."""
        wants_info = options.pop("output_loading_info", False)
        model, info = super().from_pretrained(folder, *args, output_loading_info=True, **options)
        _refuse_gaps(folder, info, ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return (model, info) if wants_info else model

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Save configuration and weights (safetensors). Raises ValueError while the vision tower is detached."""
        if self.vision_tower is None:
            raise ValueError("the vision tower is detached; attach it before saving, or the folder would be incomplete")
        super().save_pretrained(folder, **options)

    def detach_vision_tower(self) -> VisionTower:
        """Take the vision tower out of the model and return it, so that a frozen one stays outside a training engine.

        The model then takes `image_features`, which are what the tower returns.
        """
        tower, self.vision_tower = self.vision_tower, None
        return tower

    def attach_vision_tower(self, tower: VisionTower) -> None:
        """Put a detached vision tower back."""
        self.vision_tower = tower

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def forward(
        self,
        input_ids: Tensor,
        modality: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Run the model.

        input_ids (B, T). modality (B, T), or (B, K) with the tokens in the cache; tokens behind its end are text. If
        None it follows from input_ids and attention_mask, which is used for nothing else.
        pixel_values (N, 3, height, width) of all images of the batch in reading order, uint8; or in their place
        image_features (N, image_tokens, vision width), what the tower made of them.
        labels (B, T), -100 where there is none, not shifted.

        With labels, `loss` is the sum of the labels' cross entropies divided by `num_items_in_batch` (by their number
        if None), and `logits` (number of labels, vocabulary) are those that predict them. Without, `logits` are
        (B, T, vocabulary), or of the last `logits_to_keep` tokens. Raises ValueError if placeholders and images do
        not match.
        """
        hidden, cache = self._hidden(
            input_ids, modality, pixel_values, image_features, attention_mask, past_key_values, use_cache
        )
        if labels is None:
            logits = self.get_output_embeddings()(hidden[:, -logits_to_keep:])
            return CausalLMOutputWithPast(logits=logits, past_key_values=cache)
        logits, targets, _ = self._predictions(hidden, labels)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        count = max(len(targets), 1) if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=loss / count, logits=logits, past_key_values=cache)

    def token_losses(self, input_ids: Tensor, labels: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of every label (n,), in reading order, and the row of the batch it is in (n,).

        `inputs` are those of `forward`: modality, and pixel_values or image_features.
        """
        hidden, _ = self._hidden(input_ids, **inputs)
        logits, targets, rows = self._predictions(hidden, labels)
        return F.cross_entropy(logits.float(), targets, reduction="none"), rows

    def _predictions(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the head where a label follows. Returns logits (n, vocabulary), labels (n,) and rows (n,)."""
        labels = labels[:, 1:]
        labelled = labels != IGNORE
        return self.get_output_embeddings()(hidden[:, :-1][labelled]), labels[labelled], labelled.nonzero()[:, 0]

    def _hidden(
        self,
        input_ids: Tensor,
        modality: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> tuple[Tensor, Cache | None]:
        """Everything before the head. Returns hidden states (B, T, text width) and the cache."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = input_ids.shape[1]
        if modality is None:
            if past:
                raise ValueError("a forward that continues a cache needs the modality of all tokens in it")
            modality = self.modality_of(input_ids, attention_mask)
        modality = F.pad(modality, (0, past + length - modality.shape[1]), value=TEXT)
        layout = Layout.build(modality[:, past:], modality)
        embeds = self._embed(input_ids, modality[:, past:] == IMAGE, pixel_values, image_features)
        positions = ((modality != 0).cumsum(1) - 1).clamp(min=0)[:, past:]
        outputs = self.language_model.get_decoder()(
            inputs_embeds=embeds,
            position_ids=positions,
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
            layout=layout,
        )
        if layout.calls < self.config.text_config.num_hidden_layers:
            raise RuntimeError(
                f"{type(self.language_model).__name__} called the attention {self.config.attention!r} {layout.calls} "
                f"times in {self.config.text_config.num_hidden_layers} layers; use a decoder of full attention layers "
                "that takes its attention from AttentionInterface, and do not change its attn_implementation"
            )
        return outputs.last_hidden_state, outputs.past_key_values

    def _embed(
        self, input_ids: Tensor, is_image: Tensor, pixel_values: Tensor | None, image_features: Tensor | None
    ) -> Tensor:
        """Look up the tokens and put the projected images in the place of their placeholders (B, T, text width)."""
        if pixel_values is not None and image_features is not None:
            raise ValueError("pass pixel_values or image_features, not both")
        if pixel_values is not None:
            if self.vision_tower is None:
                raise ValueError("the vision tower is detached: run it and pass its output as image_features")
            image_features = self.vision_tower(pixel_values)
        embeds = self.get_input_embeddings()(input_ids)
        width, dtype = self.config.vision_config.hidden_size, next(self.projector.parameters()).dtype
        images = 0 if image_features is None else len(image_features)
        places = int(is_image.sum())
        if places != images * self.config.image_tokens or (images and image_features.shape[1] * images != places):
            raise ValueError(
                f"the batch has {places} image placeholders, but {images} images of {self.config.image_tokens} tokens; "
                "whoever made the batch must pass every image of its conversations once, in reading order"
            )
        if images:
            projected = self.projector(image_features.to(dtype)).to(embeds.dtype)
            return embeds.masked_scatter(is_image.unsqueeze(-1), projected)
        if self.training:
            # Every rank must use the same parameters in every step, or sharded training hangs (ZeRO 3) or fails.
            nothing = self.projector(torch.zeros(1, 1, width, dtype=dtype, device=embeds.device))
            return embeds + nothing.sum().to(embeds.dtype) * 0
        return embeds

    def modality_of(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Tell text and images apart by the placeholder's id, and padding by the mask. Returns (B, T)."""
        modality = torch.where(input_ids == self.config.image_token_id, IMAGE, TEXT)
        return modality if attention_mask is None else modality * attention_mask.to(modality.dtype)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        modality: Tensor | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare a step of `generate`; here `input_ids` are still all tokens, those in the cache included."""
        if modality is None:
            modality = self.modality_of(input_ids, attention_mask)
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs["image_features"] = None
        prepared = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        prepared.pop("position_ids", None)  # positions follow from the modality
        return prepared | {"modality": modality}

    def _expand_inputs_for_generation(self, expand_size: int = 1, input_ids: Tensor | None = None, **inputs: Any):
        """Repeat each conversation, and its images with it, for beams or several samples of each."""
        tokens = (input_ids == self.config.image_token_id).sum(1)
        images = {name: inputs.pop(name, None) for name in ("pixel_values", "image_features")}
        input_ids, inputs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **inputs)
        for name, value in images.items():
            if value is not None and expand_size > 1:
                rows = value.split((tokens // self.config.image_tokens).tolist())
                value = torch.cat([row for row in rows for _ in range(expand_size)])
            inputs[name] = value
        return input_ids, inputs


def refuse_misread_decoder(config: PreTrainedConfig) -> None:
    """Raise ValueError, with the reason, for a decoder that computes something which this model would leave out."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    reasons = [f"layers of {kind}" for kind in sorted(kinds)]
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None) is not None:
        reasons.append(f"a sliding window of {config.sliding_window} tokens")
    for name, neutral in _NEUTRAL.items():
        if getattr(config, name, None) not in (None, neutral):
            reasons.append(f"{name} = {getattr(config, name)}")
    if reasons:
        raise ValueError(
            f"a {config.model_type!r} language model with {', '.join(reasons)} cannot be used: the attention and the "
            "head of this model would silently leave that out"
        )


# What changes attention scores or logits outside the functions that this model calls, and its value without effect.
_NEUTRAL = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "lm_head_multiplier": 1.0,
    "attention_chunk_size": None,
    "alibi": False,
}


def _load_strictly(auto_class: Any, folder: Path, **options: Any) -> PreTrainedModel:
    """Load an ordinary folder; ValueError if it lacks a weight, which the library would fill with random numbers."""
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    _refuse_gaps(folder, info, ("missing_keys", "mismatched_keys"))
    return model


def _refuse_gaps(folder: str | Path, info: dict[str, Any], kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        if info[kind]:
            names = ", ".join(sorted(map(str, info[kind]))[:5])
            raise ValueError(f"{folder}: the weights do not fit the configuration, {kind.replace('_', ' ')}: {names}")


AutoModelForImageTextToText.register(VisualChatConfig, VisualChatForConditionalGeneration)
