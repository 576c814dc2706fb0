"""How many operations a step takes, and what share of the hardware's peak that is.

Counted are the operations that the model needs, by the usual formula: a weight costs 2 per token in the forward pass
(multiply and add), 2 in the backward pass for the gradient of its input, and 2 for its own gradient if it is trained
(Kaplan et al., arXiv 2001.08361, section 2.1); a pair of query and key costs 4 per layer and unit of width forward and
8 backward (Chowdhery et al., arXiv 2204.02311, appendix B, which multiplies out the same for all pairs; here only those
pairs count that the attention looks at). The head counts where a label is, a frozen encoder forward only and, where its
output comes from the feature store, not at all; what gradient checkpointing computes again or padding adds does not
count. So the share of the peak is the "model flops utilisation" of that paper.
"""

import os

import torch
from torch import nn

from model.modeling import VisualChatForConditionalGeneration
from scripts.common.errors import UserError
from scripts.inference.quantization import n_weights
from scripts.training.dataset import MicroBatch

VARIABLE = "VISUALCHAT_DEVICE_FLOPS"

# Dense bf16 or fp16 with fp32 sums, operations per second, from the vendors' data sheets. The first name that is
# part of the device's name applies.
PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


class Flops:
    """Counts the operations of batches of one model. Make it before the vision tower is taken out of the model.

    `encoder`: the operations of the vision encoder for an image. With `features` batches hold the encoder's output, and
    these operations are not counted.
    """

    def __init__(self, model: VisualChatForConditionalGeneration, features: bool = False) -> None:
        self._head = _cost(model.get_output_embeddings())
        self._decoder = _cost(model.get_decoder())
        tower, vision, text = model.vision_tower, model.config.vision_config, model.config.text_config
        trained = any(value.requires_grad for value in tower.parameters())
        pairs = model.config.vision_tokens**2 * vision.num_hidden_layers * vision.hidden_size
        self.encoder = _cost(tower, trained) * model.config.vision_tokens + (12 if trained else 4) * pairs
        self._image = _cost(model.projector) * model.config.vision_tokens + (0 if features else self.encoder)
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._pair = 12 * text.num_hidden_layers * text.num_attention_heads * width

    def of(self, batch: MicroBatch) -> float:
        """The operations of one forward and backward pass over `batch`; a filler costs nothing."""
        return self.matrices(batch) + self.count(pairs=batch.pairs) if batch.tokens else 0.0

    def matrices(self, batch: MicroBatch) -> float:
        """Those of encoder, projector, the decoder's layers and the head, without attention between tokens."""
        images = len(batch.tensors.get("pixel_values", batch.tensors.get("image_features", ())))
        return self.count(batch.tokens, sum(batch.labels.values()), images)

    def count(self, tokens: float = 0, labels: float = 0, images: float = 0, pairs: float = 0) -> float:
        """The operations of so many tokens, labels, images, and pairs of a token with one that it attends to."""
        return self._decoder * tokens + self._head * labels + self._image * images + self._pair * pairs


def _cost(part: nn.Module, backward: bool = True) -> float:
    """Operations per token of the matrices of `part`, each used once; tables are looked up, which costs nothing."""
    matrices = {
        id(value): value
        for module in part.modules()
        if not isinstance(module, nn.Embedding)
        for value in module.parameters(recurse=False)
        if value.ndim > 1
    }
    return float(sum(n_weights(m) * (2 + 2 * backward + 2 * m.requires_grad) for m in matrices.values()))


def peak_flops(ranks: int) -> float | None:
    """The peak of the devices of all ranks in operations per second, or None if it is unknown.

    VISUALCHAT_DEVICE_FLOPS (operations per second of one device) overrides the table.

    Raises:
        UserError: the variable is not a positive number.
    """
    if given := os.environ.get(VARIABLE):
        try:
            value = float(given)
        except ValueError:
            value = 0.0
        if not value > 0:
            raise UserError(f"{VARIABLE} is {given!r}; give a device's operations per second, such as 312e12")
        return value * ranks
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((value * ranks for known, value in PEAKS.items() if known in name), None)
