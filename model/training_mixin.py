"""What training and likelihoods ask of a model: the losses of labels, of a batch that is laid out or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention import SWITCHES
from .attention_plan import choose_backend
from .batch_layout import BatchLayout, LabelIndex, LayoutOptions
from .image_mixin import ImageInputs
from .label_loss import chunks_needed, head_losses


class TrainingMixin:
    """The part of VisualChatForConditionalGeneration that computes losses."""

    def token_losses(
        self: Any,
        input_ids: Tensor,
        labels: Tensor,
        modality: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of every label (n,), in reading order, and the number (n,) of its document.

        Documents are counted in reading order over the whole batch; without `document_ids` that is the row. The other
        arguments are those of `forward`.
        """
        if labels.shape != input_ids.shape:
            raise ValueError(f"labels {tuple(labels.shape)} must have the shape of input_ids {tuple(input_ids.shape)}")
        if modality is None:
            modality = self.infer_modality(input_ids, attention_mask, None)
        layout = BatchLayout.build(modality, options=self.layout_options(), document_ids=document_ids)
        index = LabelIndex.build(labels, modality, document_ids, layout.attention.order)
        layout, index = layout.to(input_ids.device), index.to(input_ids.device)
        losses = self.label_losses(input_ids, layout, index, pixel_values=pixel_values, image_features=image_features)
        return losses, index.documents

    def label_losses(
        self: Any,
        input_ids: Tensor,
        layout: BatchLayout,
        index: LabelIndex,
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        chunks: int | None = None,
    ) -> Tensor:
        """Return the cross entropy of every label (n,), in reading order, of a batch that is laid out already.

        `layout` and `index` are on the model's device. Nothing here waits for it. `chunks` is how often the head is
        called (None: as its memory requires), see label_loss.py; with weights that are sharded over ranks it must be
        the same on all of them.

        Raises ValueError if placeholders and images do not match.
        """
        text = layout.embed(self.get_input_embeddings(), input_ids)
        outputs = self.run_decoder(text, ImageInputs(pixel_values, image_features), layout, uses_projector=True)
        hidden = outputs.last_hidden_state
        index = index.to(hidden.device)
        if chunks is None:
            chunks = chunks_needed(len(index.targets), self.config.text_config.vocab_size)
        return head_losses(self.get_output_embeddings(), index.select(hidden), index.targets, chunks)

    def layout_options(
        self: Any, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LayoutOptions:
        """What a `BatchLayout` for this model needs to know, where it runs on `device` in `dtype` (None: as it is).

        Raises ValueError if `attention_backend` names a back-end that cannot run there.
        """
        config = self.config.text_config
        backend = choose_backend(
            self.attention_backend,
            device or self.device,
            dtype or self.dtype,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            getattr(config, "attention_dropout", 0.0) if self.training else 0.0,
        )
        return LayoutOptions(**SWITCHES[self.config.attention], backend=backend, vocabulary=config.vocab_size)
