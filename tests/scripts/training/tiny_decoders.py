"""Tiny models with random weights and a batch for them, for tests of how layers are computed."""

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from model.configuration import VisualChatConfig
from model.documents import IMAGE, TEXT
from model.modeling import VisualChatForConditionalGeneration
from scripts.config.blend import BlendConfig
from scripts.config.run import RunConfig
from scripts.estimation.activations import LayerSizes

IMAGE_TOKENS = 16
_PLACEHOLDER = 3


def tiny_text(kind: type[PreTrainedConfig] = LlamaConfig, layers: int = 2, **changes) -> PreTrainedConfig:
    """The configuration of a decoder of 64 numbers a token, with four heads in two groups."""
    fields = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": layers}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False}
    return kind(**fields | changes)


def tiny_model(
    text: PreTrainedConfig | None = None, *, layers: int = 2, encoder_layers: int = 1, attention: str = "mmca"
) -> VisualChatForConditionalGeneration:
    """A model of the same weights each time."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=encoder_layers,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    config = VisualChatConfig(
        vision_config=vision,
        text_config=text or tiny_text(layers=layers),
        attention=attention,
        tie_word_embeddings=False,
        image_token_id=_PLACEHOLDER,
    )
    return VisualChatForConditionalGeneration(config)


def tiny_batch(rows: int = 2, length: int = 64, images: int = 1) -> dict[str, Tensor]:
    """Rows (rows, length) of random text, each with `images` images spread over it, and labels at the text."""
    torch.manual_seed(1)
    ids = torch.randint(_PLACEHOLDER + 1, 64, (rows, length))
    modality = torch.full_like(ids, TEXT)
    for number in range(images):
        begin = number * (length // images) + 2
        ids[:, begin : begin + IMAGE_TOKENS] = _PLACEHOLDER
        modality[:, begin : begin + IMAGE_TOKENS] = IMAGE
    pixels = torch.randint(0, 256, (rows * images, 3, 32, 32), dtype=torch.uint8)
    labels = ids.masked_fill(modality == IMAGE, -100)
    return {"input_ids": ids, "modality": modality, "pixel_values": pixels, "labels": labels}


def layer_sizes(model: VisualChatForConditionalGeneration, run: RunConfig, tokens: int) -> LayerSizes:
    """What an estimate reads of a model, for a micro-batch of `tokens` tokens."""
    blend = BlendConfig(tokens="t", sequence=tokens, max_images=1, datasets={"llava": {}})
    return LayerSizes.of(model, run.model_copy(update={"micro_batch": 1}), blend)


def backward(model: VisualChatForConditionalGeneration, batch: dict[str, Tensor]) -> Tensor:
    """Compute the gradients of a batch; return its loss."""
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()
