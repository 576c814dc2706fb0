"""What a model computes of images: features of the tower, embeddings of the projector, states of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .attention_plan import SWITCHES, AttentionPlan
from .decoders import check_attention_calls, placeholder_mask
from .documents import IMAGE
from .image_states import ImageStates
from .rotation import KeyRotation

Embeds = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class ImageInputs:
    """The images of a forward in at most one of the forms that `forward` takes."""

    pixel_values: Tensor | None = None
    image_features: Tensor | None = None
    image_states: Sequence[ImageStates] | None = None
    mm_encoder_outputs: dict[str, Any] | None = None

    def check_one_form(self) -> None:
        """Raise ValueError if images are passed in several forms."""
        forms = (self.pixel_values, self.image_features, self.image_states, self.mm_encoder_outputs)
        if sum(form is not None for form in forms) > 1:
            raise ValueError("pass images in one form: pixel_values, image_features, image_states, mm_encoder_outputs")


class ImageMixin:
    """The part of VisualChatForConditionalGeneration that handles images."""

    _rotation: KeyRotation | None

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Run tower and projector over images (N, 3, height, width); `generate` calls this once.

        Returns the encoder's output, with hidden states and attentions if requested; its `pooler_output` holds the
        embeddings (image_tokens, text width) of each image.
        """
        outputs = self.vision_tower.encode(pixel_values, **kwargs)
        features = self.vision_tower.select(outputs)
        outputs.pooler_output = list(self.projector(features.to(self.projector_dtype)))
        requested = kwargs.get("output_hidden_states")
        if not (self.vision_tower.encoder.config.output_hidden_states if requested is None else requested):
            outputs.hidden_states = None  # `encode` may have requested them to read an inner layer
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
        """Compute the states of images (N, 3, height, width) in every layer of the decoder, see image_states.py.

        Raises ValueError if they would depend on more than the image: with 'causal' attention, or with a decoder whose
        keys cannot be moved to another position.
        """
        if SWITCHES[self.config.attention]["image_rows"] != "self":
            raise ValueError(
                f"with attention {self.config.attention!r} the states of an image depend on what precedes it; "
                "cache its image_features, or use 'mmca' or 'dattn'"
            )
        self._detect_key_rotation()
        return self._compute_states(self.image_embeds(pixel_values))

    @property
    def supports_image_states(self) -> bool:
        """Whether `compute_image_states` works with this attention and this decoder."""
        if SWITCHES[self.config.attention]["image_rows"] != "self":
            return False
        try:
            self._detect_key_rotation()
        except ValueError:
            return False
        return True

    @property
    def key_rotation(self) -> KeyRotation:
        """How the decoder rotates its keys; detected when first needed.

        Raises ValueError if its keys cannot be moved from one position to another.
        """
        return self._detect_key_rotation()

    def _detect_key_rotation(self) -> KeyRotation:
        if self._rotation is None:
            width = self.config.text_config.hidden_size
            tokens = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0))
            scale = self.get_input_embeddings().weight.detach().float().std().item() or 1.0
            embeds = (tokens * scale).to(self.device, self.dtype)
            with torch.no_grad():
                self._rotation = KeyRotation.detect(
                    self.get_decoder(), lambda positions: self._image_layers(embeds, positions)
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

    def _compute_states(self, embeds: Tensor) -> list[ImageStates]:
        """The states of images from their embeddings (N, n, text width)."""
        embeds = embeds.to(self.device, self.get_input_embeddings().weight.dtype)
        layers = self._image_layers(embeds, torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device))
        # Copies: a view of one image would keep all of them in memory.
        return [
            ImageStates(
                keys=tuple(keys[image].clone() for keys, _ in layers),
                values=tuple(values[image].clone() for _, values in layers),
            )
            for image in range(len(embeds))
        ]

    def _project(self, images: ImageInputs) -> Embeds | None:
        """The embeddings (tokens, text width) of each image; None if none was passed, or as image states."""
        if images.pixel_values is not None:
            return self.image_embeds(images.pixel_values)
        if images.image_features is not None:
            return self.projector(images.image_features.to(self.projector_dtype))
        encoded = (images.mm_encoder_outputs or {}).get("image")
        return None if encoded is None else encoded.pooler_output

    def joined_image_embeds(self, images: ImageInputs, placeholders: int) -> Tensor | None:
        """The embeddings (placeholders, text width) of all images, end to end; None where there are none.

        Raises ValueError if the images do not match the placeholders exactly.
        """
        projected = self._project(images)
        if isinstance(projected, Tensor):
            tokens = projected.shape[:2].numel()
        else:
            tokens = sum(len(image) for image in projected or ())
        if placeholders != tokens:
            count = 0 if projected is None else len(projected)
            each = len(projected[0]) if tokens else self.config.image_tokens
            raise ValueError(
                f"the batch has {placeholders} image placeholders, but {count} images of {each} tokens; "
                "pass every image of its conversations once, in reading order"
            )
        if not tokens:
            return None
        return projected.flatten(0, 1) if isinstance(projected, Tensor) else torch.cat(list(projected))

    def zero_of_image_parameters(self, embeds: Tensor) -> Tensor:
        """Zero, computed with every parameter that an image would use.

        Every rank must use the same parameters in every step, or sharded training fails (ZeRO 2) or hangs (ZeRO 3).
        """
        tower, dtype = self.vision_tower, self.projector_dtype
        if tower is not None and any(value.requires_grad for value in tower.parameters()):
            side = self.config.image_size
            features = tower(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=embeds.device)).to(dtype)
        else:
            features = self.projector.blank(embeds.device, dtype)
        # Not the sum times zero: in float16 it may be infinite.
        return (self.projector(features) * 0).sum().to(embeds)
