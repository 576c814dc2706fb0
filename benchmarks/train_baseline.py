"""The training step of the baseline of `benchmarks.train`: a plain loop like the original's.

It was written from the description of the original and shares the reader, the encoder and the projector with this
project. Conversations are padded to the longest of the batch, JPEGs decoded when the batch is needed; the encoder runs
inside the module; logits are computed at every token; MMCA takes two T x T masks and two softmaxes over all scores.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def padded(reader: Any, processor: Any, rows: range) -> dict[str, Tensor]:
    """Read, decode and pad the conversations `rows`, in this process."""
    from scripts.media.opening import decode_image

    encoded = []
    for position in rows:
        sample = reader[position]
        images = [processor.preprocess_image(decode_image(data)) for data in sample.images]
        encoded.append((processor.encode(sample.messages), images))
    return processor.collate(encoded, padding_side="right")


class BaselineModel(nn.Module):
    """Encoder, projector and decoder in one module, which returns the mean cross entropy of a padded batch."""

    def __init__(self, model: Any) -> None:
        """Takes the parts of `model`, which cannot be used any more: its decoder gets dense attention."""
        from transformers import AttentionInterface

        super().__init__()
        AttentionInterface.register("dense_mmca", dense_mmca)
        self.tower, self.projector, self.language = model.vision_tower, model.projector, model.language_model
        # The modules of a decoder that was installed in our model read the name of its attention from a view.
        for layer in self.language.get_decoder().layers:
            layer.self_attn.config = self.language.config
        self.language.set_attn_implementation("dense_mmca")

    def forward(self, input_ids: Tensor, modality: Tensor, labels: Tensor, pixel_values: Tensor, **_: Tensor) -> Tensor:
        """The mean loss of a batch."""
        embeds = self.language.get_input_embeddings()(input_ids)
        features = self.projector(self.tower(pixel_values))
        embeds = embeds.masked_scatter((modality == 2)[..., None], features.to(embeds.dtype))
        text, image = dense_masks(modality, embeds.dtype)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        logits = self.language(
            inputs_embeds=embeds,
            attention_mask=torch.zeros(1, 1, 1, 1, device=embeds.device),
            position_ids=positions,
            use_cache=False,
            text_mask=text,
            image_mask=image,
        ).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)


def dense_masks(modality: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The biases (B, 1, T, T) of the scores of both branches: 0 where a token attends, the lowest number elsewhere.

    Text attends to all earlier text, and to all earlier images; an image token attends to itself in the text branch.
    """
    length = modality.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=modality.device).tril()
    rows, columns = modality[:, :, None] == 1, modality[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=modality.device)

    def bias(attends: Tensor) -> Tensor:
        return torch.zeros_like(attends, dtype=dtype).masked_fill(~attends, torch.finfo(dtype).min)[:, None]

    return bias(causal & rows & (columns == 1) | itself & ~rows), bias(causal & rows & (columns == 2))


def dense_mmca(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    text_mask: Tensor,
    image_mask: Tensor,
    **_: object,
) -> tuple[Tensor, None]:
    """softmax(QK masked to text) V + softmax(QK masked to images) V, each over all T x T scores."""
    scores = query @ key.transpose(2, 3) * scaling
    text = torch.softmax(scores + text_mask, -1) @ value
    # Where no image precedes the token, the branch adds nothing.
    some = (image_mask == 0).any(-1, keepdim=True)
    image = torch.softmax(scores + image_mask, -1) @ value * some
    return (text + image).transpose(1, 2).contiguous(), None
