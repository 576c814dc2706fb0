"""Gradient checkpointing of every n-th layer: those keep their input alone and are computed again in the backward pass.

The gradients are the same, bit for bit. With n = 1 activations take the least memory, and every layer is computed
twice; with n = 2 half of the layers keep what they computed, and so on.
"""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from model.modeling import VisualChatForConditionalGeneration
from scripts.common.errors import UserError


def checkpoint_layers(model: VisualChatForConditionalGeneration, every: int) -> None:
    """Checkpoint layers 0, `every`, 2 * `every`, ... of the decoder, and of the encoder if it is part of the model.

    0: none. A detached vision tower is not changed.

    Raises:
        UserError: the decoder can be checkpointed in every layer only.
    """
    if not every:
        return
    model.activation_checkpointing_enable({"use_reentrant": False})
    decoder = model.get_decoder()
    if every > 1 and not repeated_layers(decoder):
        raise UserError(
            f"gradient_checkpointing: {every} is not possible with {type(decoder).__name__}, whose layers have no "
            "switch of their own; set it to true or false"
        )
    for part in (decoder, model.vision_tower):
        for number, layer in enumerate(repeated_layers(part)):
            layer.gradient_checkpointing = number % every == 0


def repeated_layers(part: nn.Module | None) -> list[GradientCheckpointingLayer]:
    """The layers of a decoder or an encoder that can be checkpointed, in their order."""
    return [] if part is None else [layer for layer in part.modules() if isinstance(layer, GradientCheckpointingLayer)]
