"""The hooks of `generate`: what is kept from step to step, and what beams and samples share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationMixin

from .conversation_cache import ConversationCache
from .documents import IMAGE, TEXT


class VisualChatGenerationMixin(GenerationMixin):
    """The part of VisualChatForConditionalGeneration that `generate` calls."""

    def infer_modality(
        self, input_ids: Tensor | None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Find images by their placeholder and padding by the mask. Returns the modality (B, T).

        Where the mask is longer than the tokens, it covers the tokens before them too, and so does the result, which
        treats those as text.
        """
        if inputs_embeds is None:
            is_image = input_ids == self.config.image_token_id
        else:
            placeholder = torch.tensor([self.config.image_token_id], device=inputs_embeds.device)
            is_image = (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)
        modality = torch.where(is_image, IMAGE, TEXT)
        if attention_mask is None:
            return modality
        modality = F.pad(modality, (attention_mask.shape[1] - modality.shape[1], 0), value=TEXT)
        return modality * attention_mask.to(modality.device, modality.dtype)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        modality: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare a step; `input_ids` are all tokens here, those in the cache included."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs["image_features"] = kwargs["image_states"] = None
        prepared = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        prepared.pop("position_ids", None)  # `forward` computes them from the modality
        return prepared | {"modality": modality}

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat each conversation, and its images with it, for beams or several samples of each."""
        embeds = inputs.get("inputs_embeds")
        if inputs.get("modality") is None:
            without_ids = input_ids is None or input_ids.shape[1] == 0
            inputs["modality"] = self.infer_modality(
                input_ids, inputs.get("attention_mask"), embeds if without_ids else None
            )
        images = {name: inputs.pop(name, None) for name in ("image_features", "image_states")}
        tokens = (inputs["modality"] == IMAGE).sum(1).tolist()
        input_ids, inputs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **inputs)
        for name, value in images.items():
            if value is not None and expand_size > 1:
                value = [value[index] for index in _repeat_images(tokens, self.config.image_tokens, expand_size)]
                value = torch.stack(value) if name == "image_features" else value
            inputs[name] = value
        return input_ids, inputs

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        """Images that are passed as states need a cache that keeps them separate."""
        if model_kwargs.get("image_states") is not None and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = ConversationCache(self.config)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)


def _repeat_images(tokens: list[int], each: int, times: int) -> list[int]:
    """The indices of the images of every row, row by row, each row `times` times.

    `tokens` is the number of placeholders of every row, `each` that of an image.
    """
    order, first = [], 0
    for count in tokens:
        order += list(range(first, first + count // each)) * times
        first += count // each
    return order
