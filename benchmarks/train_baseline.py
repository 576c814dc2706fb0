"""The training step of a plain loop in the original's manner, as `benchmarks.train` measures it: written from its
description. Of ours it has the reader, the encoder and the projector.

Conversations are padded to the longest of the batch, JPEGs decoded when the batch is due; the encoder runs inside the
module; logits are computed at every place; MMCA takes two T x T masks and two softmaxes over all scores.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def padded(reader: Any, processor: Any, rows: range) -> dict[str, Tensor]:
    """Read, decode and pad some conversations, here and now."""
    from scripts.media.opening import open_image

    encoded = []
    for position in rows:
        sample = reader[position]
        images = []
        for data in sample.images:
            with open_image(data) as picture:
                images.append(processor.preprocess_image(picture))
        encoded.append((processor.encode(sample.messages), images))
    return processor.collate(encoded, padding_side="right")


class BaselineModel(nn.Module):
    """Encoder, projector and decoder in one module, which returns the mean cross entropy of a padded batch."""

    def __init__(self, model: Any, folder: Path):
        """`model` gives encoder and projector; the language model is read again, with the library's own layers."""
        from transformers import AttentionInterface, LlamaForCausalLM

        super().__init__()
        AttentionInterface.register("dense_mmca", dense_mmca)
        self.tower, self.projector = model.vision_tower, model.projector
        self.language = LlamaForCausalLM.from_pretrained(
            folder / "language", attn_implementation="dense_mmca", dtype=model.dtype
        )

    def forward(self, input_ids: Tensor, modality: Tensor, labels: Tensor, pixel_values: Tensor, **_: Tensor) -> Tensor:
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
    """What is added to the scores of the two branches, (B, 1, T, T): 0 where a token looks, very little elsewhere.

    Text looks at all earlier text, and at all earlier images; an image token looks at itself, as text.
    """
    length = modality.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=modality.device).tril()
    rows, columns = modality[:, :, None] == 1, modality[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=modality.device)
    looks = (causal & rows & (columns == 1) | itself & ~rows, causal & rows & (columns == 2))
    low = torch.finfo(dtype).min
    return tuple(torch.zeros_like(look, dtype=dtype).masked_fill(~look, low)[:, None] for look in looks)


def dense_mmca(module, query, key, value, attention_mask, scaling=None, text_mask=None, image_mask=None, **_):
    """softmax(QK masked to text) V + softmax(QK masked to images) V, each over all T x T scores."""
    scores = query @ key.transpose(2, 3) * scaling
    text = torch.softmax(scores + text_mask, -1) @ value
    # Where no image lies before, the branch adds nothing.
    some = (image_mask == 0).any(-1, keepdim=True)
    image = torch.softmax(scores + image_mask, -1) @ value * some
    return (text + image).transpose(1, 2).contiguous(), None
