"""How a model takes part in `generate`: what stays from step to step, and what beams and samples share."""

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
        """Tell text and images apart by the placeholder, and padding by the mask. Returns (B, T).

        Where the mask is longer than the tokens, it is of all tokens up to these, and so is the result; what lies
        before them counts as text.
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
        """Prepare a step; here `input_ids` are still all tokens, those in the cache included."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs["image_features"] = kwargs["image_states"] = None
        prepared = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        prepared.pop("position_ids", None)  # positions follow from the modality
        return prepared | {"modality": modality}

    def _expand_inputs_for_generation(self, expand_size: int = 1, input_ids: Tensor | None = None, **inputs: Any):
        """Repeat each conversation, and its images with it, for beams or several samples of each."""
        embeds = inputs.get("inputs_embeds")
        if inputs.get("modality") is None:
            mask = inputs.get("attention_mask")
            inputs["modality"] = self.infer_modality(input_ids, mask, embeds if input_ids.shape[1] == 0 else None)
        images = {name: inputs.pop(name, None) for name in ("image_features", "image_states")}
        tokens = (inputs["modality"] == IMAGE).sum(1).tolist()
        input_ids, inputs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **inputs)
        for name, value in images.items():
            if value is not None and expand_size > 1:
                value = [value[place] for place in _repeated(tokens, self.config.image_tokens, expand_size)]
                value = torch.stack(value) if name == "image_features" else value
            inputs[name] = value
        return input_ids, inputs

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        """Images that come as states need a cache that keeps them apart."""
        if model_kwargs.get("image_states") is not None and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = ConversationCache(self.config)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)


def _repeated(tokens: list[int], each: int, times: int) -> list[int]:
    """The numbers of the images of every row, row by row, each row `times` times; rows have `tokens` placeholders."""
    order, first = [], 0
    for count in tokens:
        order += list(range(first, first + count // each)) * times
        first += count // each
    return order
