"""VisualChatForConditionalGeneration: a vision tower, a projector and a language model as one model of `transformers`.

    1. tower      pixels of all images of the batch (N, 3, height, width) -> features (N, tokens, vision width)
    2. projector  features -> (N, image_tokens, width of the language model)
    3. embedding  of the tokens; projected features replace the image placeholders
    4. decoder    with the attention that the configuration names (attention.py)
    5. head       only where there is a label, or at the tokens whose logits are requested

The keys of a batch, each optional but the first:

    input_ids        (B, T) tokens, image placeholders among them
    modality         (B, T) 0 padding, 1 text, 2 image; follows from input_ids and attention_mask if absent
    document_ids     (B, T) 0 padding, and from 1 on the documents packed into each row; absent: a row is a document
    labels           (B, T) not shifted, -100 where there is none
    pixel_values     (N, 3, height, width) uint8, every image once, in reading order

Positions follow from modality and documents: padding on the left or on the right changes nothing, each document begins
at 0, and packed documents give the numbers that they give in rows of their own.

Where the images, documents and labels of a batch lie is computed on the CPU (batch_layout.py). Training computes that
ahead of time and calls `label_losses`, which never waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .base_models import generation_defaults, joined_config, load_base_models
from .batch_layout import BatchLayout, LabelIndex
from .configuration import VisualChatConfig
from .conversation_cache import ConversationCache
from .decoders import (
    check_attention_calls,
    check_decoder_supported,
    dry_run_decoder,
    install_attention,
    placeholder_mask,
)
from .documents import TEXT
from .encoder_loading import check_loading_info
from .generation_mixin import VisualChatGenerationMixin
from .image_mixin import ImageInputs, ImageMixin
from .image_states import ImageStates
from .projector import build_projector
from .resampler import Resampler
from .rotation import KeyRotation
from .template import Template
from .training_mixin import TrainingMixin
from .vision import VisionTower


class VisualChatForConditionalGeneration(ImageMixin, TrainingMixin, VisualChatGenerationMixin, PreTrainedModel):
    """See the module's docstring. Build one with `from_base_models` or `from_pretrained`."""

    config_class = VisualChatConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        config: VisualChatConfig,
        encoder: PreTrainedModel | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        check_decoder_supported(config.text_config)
        self.vision_tower = VisionTower(config, encoder)
        self.projector = build_projector(config)
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        install_attention(self.language_model, config.attention)
        self.attention_backend = "auto"  # one of BACKENDS; it depends on the machine, so it is no configuration
        self._rotation: KeyRotation | None = None
        self.post_init()
        dry_run_decoder(self.language_model, config.attention)

    @classmethod
    def from_base_models(
        cls,
        vision_folder: Path,
        language_folder: Path,
        tokenizer: Any,
        *,
        template: Template | dict[str, str | bool] | None = None,
        dtype: torch.dtype | None = None,
        keep_language_dtype: bool = False,
        **options: Any,
    ) -> VisualChatForConditionalGeneration:
        """Join a vision encoder and a language model, each an ordinary folder of `transformers`, with a new projector.

        `tokenizer` is the language model's. It gets the image placeholder if it lacks it, and only then may the
        embedding grow. `options` are fields of `VisualChatConfig` (attention, projector, vision_feature_layer, ...).
        `dtype` defaults to the language model's own. With `keep_language_dtype` the language model keeps it even if
        `dtype` is given: its weights are then memory-mapped, not copied. It must be converted before it is used.

        Raises ValueError for a folder that lacks weights, or a decoder whose attention is not supported.
        """
        encoder, language = load_base_models(vision_folder, language_folder, tokenizer, dtype, keep_language_dtype)
        dtype = dtype or language.dtype
        config = joined_config(vision_folder, encoder, language, tokenizer, template, options)
        model = cls(config, encoder, language).eval()
        # The parts are in `dtype` already. Converting the whole model would round buffers too, such as the frequencies
        # of rotary positions, which a model that is loaded from its folder has in full precision.
        model.projector.to(dtype)
        with torch.no_grad():
            config.image_tokens = model.projector(model.projector.blank(model.device, dtype)).shape[1]
        model.generation_config = generation_defaults(tokenizer, config, language.generation_config)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **options: Any) -> Any:
        """Load the folder of a model and return it; with `output_loading_info`, the model and that information.

        Raises ValueError if a weight is missing, unexpected or of another shape, unless `output_loading_info` is given.
        """
        wants_info = options.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **options)
        if wants_info:
            return model, info
        check_loading_info(pretrained_model_name_or_path, info, ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return model

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """Save configuration and weights (safetensors). Raises ValueError while the vision tower is detached."""
        if self.vision_tower is None:
            raise ValueError("the vision tower is detached; attach it before saving, or the folder would be incomplete")
        super().save_pretrained(save_directory, *args, **options)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Resampler):
            module.init_weights()
        else:
            super()._init_weights(module)

    def detach_vision_tower(self) -> VisionTower:
        """Take the vision tower out of the model and return it, so that a frozen one stays outside a training engine.

        The model then takes `image_features`, which are what the tower returns.
        """
        tower = self.vision_tower
        self.register_module("vision_tower", None)
        return tower

    def attach_vision_tower(self, tower: VisionTower) -> None:
        """Put a detached vision tower back."""
        self.vision_tower = tower

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the decoder."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the decoder."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The output head of the decoder."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output head of the decoder."""
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """The decoder without its output head."""
        return self.language_model.get_decoder()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        modality: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_states: Sequence[ImageStates] | None = None,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> CausalLMOutputWithPast:
        """Run the model on a batch, see the module's docstring.

        Images come in one of four forms: pixel_values; image_features (N, tokens, vision width), the output of the
        tower; mm_encoder_outputs {'image': the output of `get_image_features`}; or image_states, see image_states.py.
        inputs_embeds (B, T, text width) replace input_ids. With a cache, input_ids are the new tokens, and modality
        (B, K) and attention_mask (B, K) cover all tokens; tokens behind the end of modality are text. attention_mask
        marks padding where modality is absent, and is used for nothing else. use_cache defaults to the decoder's
        configuration, and to false in training or with labels.

        With labels, `loss` is the sum of the labels' cross entropies divided by `num_items_in_batch` (by their number
        if None), and `logits` (number of labels, vocabulary) are those that predict them. Without, `logits` are
        (B, T, vocabulary), or of the last `logits_to_keep` tokens.

        Raises ValueError if placeholders and images do not match, or for inputs that exclude each other.
        """
        outputs, layout, index = self._decode(
            input_ids,
            ImageInputs(pixel_values, image_features, image_states, mm_encoder_outputs or None),
            modality=modality,
            attention_mask=attention_mask,
            document_ids=document_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=self._uses_cache(use_cache, labels),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            labels=labels,
        )
        hidden, loss = outputs.last_hidden_state, None
        if index is None:
            hidden = hidden if layout is None else layout.restore(hidden)
            logits = self.get_output_embeddings()(_select_positions(hidden, logits_to_keep))
        else:
            index = index.to(hidden.device)
            logits = self.get_output_embeddings()(index.select(hidden))
            logits_of_loss = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(logits_of_loss, index.targets, reduction="sum")
            loss = loss / (max(len(index.targets), 1) if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _uses_cache(self, use_cache: bool | None, labels: Tensor | None) -> bool:
        if use_cache is None:
            use_cache = labels is None and not self.training and getattr(self.config.text_config, "use_cache", True)
        return use_cache

    def _decode(
        self,
        input_ids: Tensor | None,
        images: ImageInputs,
        *,
        modality: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        labels: Tensor | None = None,
    ) -> tuple[BaseModelOutputWithPast, BatchLayout | None, LabelIndex | None]:
        """Everything before the head; the arguments are those of `forward`.

        Hidden states are in the order of the layout, of which there is none with a conversation cache. The index is on
        the CPU.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, one of them")
        images.check_one_form()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        length = given.shape[1]
        if labels is not None and labels.shape != given.shape[:2]:
            raise ValueError(f"labels {tuple(labels.shape)} must have the shape of the tokens {tuple(given.shape[:2])}")
        if modality is None:
            if past and not isinstance(past_key_values, ConversationCache):
                raise ValueError("a forward that continues a cache needs the modality of all tokens in it")
            modality = self.infer_modality(input_ids, attention_mask, inputs_embeds)
            if modality.shape[1] < past + length:  # the conversation cache has the modality of its own tokens
                modality = F.pad(modality, (past, 0), value=TEXT)
        modality = F.pad(modality, (0, past + length - modality.shape[1]), value=TEXT)
        if images.image_states is not None or isinstance(past_key_values, ConversationCache):
            if document_ids is not None or output_attentions or output_hidden_states:
                raise ValueError("a conversation cache supports neither packed documents, attentions nor hidden states")
            embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
            index = None if labels is None else LabelIndex.build(labels, modality[:, past:])
            return self._decode_text(embeds, modality[:, past:], images, past_key_values), None, index

        config = self.config.text_config
        if output_attentions is None and (self.config.output_attentions or config.output_attentions):
            output_attentions = True
        layout = BatchLayout.build(
            modality,
            length,
            document_ids=document_ids,
            options=self.layout_options(),
            weights=bool(output_attentions) or config._attn_implementation == "eager",
            # Caches, attentions and hidden states need the batch in its own order.
            unpad=not (use_cache or past_key_values is not None or output_attentions or output_hidden_states)
            and not config.output_hidden_states,
        )
        order = layout.attention.order
        index = None if labels is None else LabelIndex.build(labels, modality[:, past:], document_ids, order)
        layout = layout.to(given.device)
        requested = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        if inputs_embeds is None:
            assert input_ids is not None
            text = layout.embed(self.get_input_embeddings(), input_ids)
        else:
            text = layout.select(inputs_embeds)
        layout = layout.to(text.device)  # not that of the tokens, where the model is spread over devices
        outputs = self.run_decoder(
            text,
            images,
            layout,
            position_ids=None if position_ids is None else layout.arrange(position_ids),
            past_key_values=past_key_values,
            use_cache=use_cache,
            uses_projector=self.training,
            **{name: value for name, value in requested.items() if value is not None},
        )
        return outputs, layout, index

    def run_decoder(
        self,
        text: Tensor,
        images: ImageInputs,
        layout: BatchLayout,
        position_ids: Tensor | None = None,
        *,
        uses_projector: bool,
        **options: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder on embedded text (n, width) and images, in the order of the layout.

        With `uses_projector` the parameters that an image needs are used in a batch without images too.
        """
        embeds = layout.join(text, self.joined_image_embeds(images, layout.image_tokens))
        if uses_projector and not layout.image_tokens:
            embeds = embeds + self.zero_of_image_parameters(embeds)
        layout.attention.reset_calls()
        outputs = self.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=placeholder_mask(embeds),
            position_ids=layout.position_ids if position_ids is None else position_ids,
            attention_plan=layout.attention,
            **{"use_cache": False} | options,
        )
        check_attention_calls(self.language_model, self.config.attention, layout.attention)
        return outputs

    def _decode_text(
        self, embeds: Tensor, modality: Tensor, images: ImageInputs, cache: Cache | None
    ) -> BaseModelOutputWithPast:
        """A forward over a conversation cache: the decoder runs on the text alone."""
        cache = ConversationCache(self.config) if cache is None else cache
        if not isinstance(cache, ConversationCache):
            raise ValueError("image_states need a ConversationCache, or no cache")
        states = images.image_states
        if states is None:
            projected = self._project(images)
            states = [] if projected is None else self._compute_states(torch.stack(list(projected)))
        step = cache.prepare_step(modality, states, self.key_rotation, embeds.device)
        hidden = step.select_text(embeds)
        if hidden.shape[1]:
            hidden = self.get_decoder()(
                inputs_embeds=hidden,
                attention_mask=placeholder_mask(hidden),
                position_ids=step.positions,
                past_key_values=cache,
                use_cache=True,
                attention_plan=step.attention_plan,
            ).last_hidden_state
            check_attention_calls(self.language_model, self.config.attention, step.attention_plan)
        return BaseModelOutputWithPast(step.scatter_text(hidden, embeds.shape[1]), past_key_values=cache)


def _select_positions(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The hidden states (B, T, width) whose logits are requested: the last ones (0: all), or by index."""
    return hidden[:, logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep, None)]


AutoModelForImageTextToText.register(VisualChatConfig, VisualChatForConditionalGeneration, exist_ok=True)
