"""What a model makes of images: features of the tower, embeddings of the projector, states of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .attention_plan import SWITCHES, AttentionPlan
from .conversation_cache import ImageStates
from .decoders import check_attention_calls, placeholder_mask
from .documents import IMAGE
from .rotation import KeyRotation

Embeds = Tensor | Sequence[Tensor]


class ImageMixin:
    """The part of VisualChatForConditionalGeneration that deals with images."""

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Run tower and projector over images (N, 3, height, width), as `generate` does before it begins.

        Returns the encoder's output, with hidden states and attentions if asked for; its `pooler_output` holds the
        embeddings (image_tokens, text width) of each image.
        """
        outputs = self.vision_tower.encode(pixel_values, **kwargs)
        features = self.vision_tower.select(outputs)
        outputs.pooler_output = list(self.projector(features.to(self.projector_dtype)))
        asked = kwargs.get("output_hidden_states")
        if not (self.vision_tower.encoder.config.output_hidden_states if asked is None else asked):
            outputs.hidden_states = None  # an inner layer may have been asked for by `encode` alone
        return outputs

    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        """Run tower and projector over images (N, 3, height, width); returns (N, image_tokens, text width).

        Raises ValueError while the vision tower is detached.
        """
        if self.vision_tower is None:
            raise ValueError("the vision tower is detached: run it and pass its output as image_features")
        return self.projector(self.vision_tower(pixel_values).to(self.projector_dtype))

    @torch.no_grad()
    def compute_image_states(self, pixel_values: Tensor) -> list[ImageStates]:
        """Compute the states of images (N, 3, height, width) in every layer of the decoder, see cache.py.

        Raises ValueError if they would depend on more than the image: with 'causal' attention, or with a decoder whose
        keys cannot be moved to another position.
        """
        if SWITCHES[self.config.attention]["image_rows"] != "self":
            raise ValueError(
                f"with attention {self.config.attention!r} the states of an image depend on what precedes it; "
                "cache its image_features, or use 'mmca' or 'dattn'"
            )
        _ = self.key_rotation
        return self._states_of(self.image_embeds(pixel_values))

    @property
    def supports_image_states(self) -> bool:
        """Whether `image_states` can be computed with this attention and this decoder."""
        try:
            return SWITCHES[self.config.attention]["image_rows"] == "self" and self.key_rotation is not None
        except ValueError:
            return False

    @property
    def key_rotation(self) -> KeyRotation:
        """How the decoder turns its keys; found out by watching it when first needed.

        Raises ValueError if its keys cannot be moved from one position to another.
        """
        if self._rotation is None:
            width = self.config.text_config.hidden_size
            tokens = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0))
            scale = self.get_input_embeddings().weight.detach().float().std().item() or 1.0
            embeds = (tokens * scale).to(self.device, self.dtype)
            with torch.no_grad():
                self._rotation = KeyRotation.detect(
                    self.get_decoder(), lambda places: self._image_layers(embeds, places)
                )
        return self._rotation

    @property
    def projector_dtype(self) -> torch.dtype:
        """The precision of the projector's weights."""
        return next(self.projector.parameters()).dtype

    def _image_layers(self, embeds: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (N, G, n, D) in every layer of images (N, n, text width) at `positions` (N, n)."""
        attention_plan = AttentionPlan.build(torch.full(positions.shape, IMAGE), **SWITCHES[self.config.attention]).to(
            embeds.device
        )
        cache = DynamicCache(config=self.config.text_config)
        self.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=placeholder_mask(embeds),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            attention_plan=attention_plan,
        )
        check_attention_calls(self.language_model, self.config.attention, attention_plan)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _states_of(self, embeds: Tensor) -> list[ImageStates]:
        embeds = embeds.to(self.device, self.get_input_embeddings().weight.dtype)
        layers = self._image_layers(embeds, torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device))
        # Copies: a view of one image would keep all of them in memory.
        return [
            ImageStates(*(tuple(part[place].clone() for part in parts) for parts in zip(*layers, strict=True)))
            for place in range(len(embeds))
        ]

    def _projected(self, images: tuple) -> Embeds | None:
        """The embeddings (tokens, text width) of each image, from whichever of the forms of `forward` was given."""
        pixel_values, image_features, _, encoded = images
        if pixel_values is not None:
            return self.image_embeds(pixel_values)
        if image_features is not None:
            return self.projector(image_features.to(self.projector_dtype))
        return None if encoded is None or encoded.get("image") is None else encoded["image"].pooler_output

    def _with_images(self, embeds: Tensor, is_image: Tensor, images: tuple) -> Tensor:
        """Put the images into their places in `embeds` (B, T, text width), where `is_image` (B, T) is true.

        Raises ValueError if they do not fill them exactly.
        """
        given = self._projected(images)
        places, tokens = int(is_image.sum()), 0 if given is None else sum(len(one) for one in given)
        if places != tokens:
            each = len(given[0]) if tokens else self.config.image_tokens
            raise ValueError(
                f"the batch has {places} image placeholders, but {0 if given is None else len(given)} images of {each} "
                "tokens; whoever made the batch must pass every image of its conversations once, in reading order"
            )
        if tokens:
            flat = given.flatten(0, 1) if isinstance(given, Tensor) else torch.cat(list(given))
            return embeds.masked_scatter(is_image.unsqueeze(-1).to(embeds.device), flat.to(embeds))
        return embeds + self._nothing(embeds) if self.training else embeds

    def _nothing(self, embeds: Tensor) -> Tensor:
        """Zero, computed with every parameter that an image would use.

        Every rank must use the same parameters in every step, or sharded training fails (ZeRO 2) or hangs (ZeRO 3).
        """
        tower, dtype = self.vision_tower, self.projector_dtype
        if tower is not None and any(value.requires_grad for value in tower.parameters()):
            side = self.config.image_size
            features = tower(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=embeds.device)).to(dtype)
        else:
            features = self.projector.blank(embeds.device, dtype)
        return self.projector(features).sum().to(embeds) * 0
