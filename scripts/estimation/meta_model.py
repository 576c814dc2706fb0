"""A model without weights: built on the meta device, where tensors have shapes and no memory, as training builds it.

So every count of an estimate is that of the real modules, adapters and tied weights included, also of 70 billion
parameters on a laptop.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model.configuration import VisualChatConfig
from model.modeling import VisualChatForConditionalGeneration
from scripts.common.errors import UserError
from scripts.config.model import ModelConfig
from scripts.config.run import RunConfig
from scripts.estimation.architectures import config_of
from scripts.inference.quantization import n_quantizable
from scripts.training.optimizers import OPTIMIZERS
from scripts.training.trainable import PARTS, mark_trainable, parameter_groups, part_of

# DeepSpeed's stage3_param_persistence_threshold.
_PERSISTENT = 100_000


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part, all and trained.

    `groups`: sizes of the trained ones, in the groups and the order of the optimizer. `small`: how many parameters
    inside the engine lie in tensors so small that stage 3 keeps them whole as well. `state_tensors`: tensors that the
    optimizer keeps of every trained parameter. `quantized`: frozen ones that are kept in 4 bits.
    """

    total: dict[str, int]
    trained: dict[str, int]
    groups: tuple[tuple[int, ...], ...] = ()
    small: int = 0
    state_tensors: int = 2
    quantized: int = 0

    @property
    def tower_outside(self) -> bool:
        """Whether the encoder stays outside the engine."""
        return not self.trained["vision"]

    @property
    def tower(self) -> int:
        """Parameters outside the engine, whole on every rank."""
        return self.total["vision"] if self.tower_outside else 0

    @property
    def inside(self) -> int:
        """Parameters inside the engine."""
        return sum(self.total.values()) - self.tower

    @property
    def n_trained(self) -> int:
        """Trained parameters."""
        return sum(self.trained.values())


def build(settings: ModelConfig, run: RunConfig, root: Path) -> VisualChatForConditionalGeneration:
    """Build the model of a run, with its adapters and with what is frozen marked, on the meta device.

    Raises:
        UserError: a base is unknown, or the two cannot be joined.
    """
    vision = config_of(settings.vision, root, "vision")
    language = config_of(settings.language, root, "language")
    try:
        config = VisualChatConfig(
            vision_config=vision,
            text_config=language,
            attention=run.attention,
            **settings.projector_options(),
            tie_word_embeddings=language.tie_word_embeddings,
        )
        with torch.device("meta"):
            model = VisualChatForConditionalGeneration(config)
            # In fp32, whatever the run's precision: in no other can `mark_trainable` run the encoder on this device.
            mark_trainable(model, run)
            config.image_tokens = model.projector(model.projector.blank(model.device, model.dtype)).shape[1]
    except ValueError as error:
        raise UserError(f"{settings.vision} and {settings.language} cannot be joined: {error}") from None
    return model


def count(model: VisualChatForConditionalGeneration, run: RunConfig) -> ParameterCounts:
    """Count the parameters of the model of a run."""
    total, trained = Counter(dict.fromkeys(PARTS, 0)), Counter(dict.fromkeys(PARTS, 0))
    sizes: dict[str, list[int]] = {part: [] for part in PARTS}
    for name, value in model.named_parameters():
        part = part_of(model, name, value)
        total[part] += value.numel()
        trained[part] += value.numel() * value.requires_grad
        sizes[part].append(value.numel())
    inside = [part for part in PARTS if part != "vision" or trained["vision"]]
    small = sum(size for part in inside for size in sizes[part] if size <= _PERSISTENT)
    groups = (tuple(value.numel() for value in group["params"]) for group in parameter_groups(model, run))
    state_tensors = len(OPTIMIZERS[run.optimizer].state_names)
    quantized = n_quantizable(model.get_decoder()) if run.quantize != "none" else 0
    return ParameterCounts(dict(total), dict(trained), tuple(groups), small, state_tensors, quantized)


def largest_layer(model: VisualChatForConditionalGeneration) -> int:
    """Parameters of the largest module that is gathered as a whole: a layer, the embeddings, or the output head."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    layers: list[nn.Module] = [layer for modules in lists for layer in modules]
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    return max(_size(module.parameters()) for module in [*layers, *tables])


def _size(values: Iterable[nn.Parameter]) -> int:
    return sum(value.numel() for value in values)
