"""Which parts of a model are trained, how, and at which rate: four parts, and adapters that merge exactly.

    part         how
    language     frozen, full, or lora: low-rank adapters beside the linear layers of the decoder
    embeddings   frozen or full: the tokens' table, and the output head where it is the same table
    projector    frozen or full
    vision       frozen, full or lora

An adapter of rank r beside a matrix W stands for W + scale * B A, with A (r, in) and B (out, r), B zero at the start
(LoRA, arXiv 2106.09685). W is never touched in training: only A and B are trained and saved. For an exported
model the sum is computed once, in double precision, and rounded once to the precision of the export.
"""

from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from model.modeling import VisualChatForConditionalGeneration
from scripts.config.run import RunConfig
from scripts.inference.lora import add_adapters
from scripts.inference.quantization import n_weights
from scripts.training.precision import dtype_of

PARTS = ("language", "embeddings", "projector", "vision")


def mark_trainable(model: VisualChatForConditionalGeneration, settings: RunConfig) -> None:
    """Add the adapters that `settings` name, set `requires_grad` of what is trained, and clear it of all else.

    Parameters of the encoder that do not affect its features (the pooling head, layers behind the one that is read)
    stay frozen, so that every trained parameter has a gradient in every step.
    """
    torch.manual_seed(settings.seed)
    model.requires_grad_(False)
    language, vision = model.get_decoder(), model.vision_tower
    for part, how, rank in (
        (language, settings.train_language, settings.language_lora_rank),
        (vision.encoder, settings.train_vision, settings.vision_lora_rank),
    ):
        if how == "lora":
            add_adapters(part, rank, settings.lora_scale, settings.lora_dropout, dtype_of(settings.precision))
    if settings.train_language == "full":
        model.language_model.requires_grad_(True)
    model.get_input_embeddings().requires_grad_(settings.train_embeddings)
    model.projector.requires_grad_(settings.train_projector)
    if settings.train_vision == "full":
        vision.requires_grad_(True)
    if settings.train_vision != "frozen":
        _freeze_unused(model)


def part_of(model: VisualChatForConditionalGeneration, name: str, value: nn.Parameter) -> str:
    """The part that a parameter belongs to."""
    if value is model.get_input_embeddings().weight:
        return "embeddings"
    prefixes = {"projector.": "projector", "vision_tower.": "vision"}
    return next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "language")


def peak_rates(settings: RunConfig) -> dict[str, float]:
    """The peak learning rate of every part."""
    return {part: settings.rate_of(part) for part in PARTS}


def parameter_groups(model: VisualChatForConditionalGeneration, settings: RunConfig) -> list[dict[str, Any]]:
    """Group what is trained by peak rate and weight decay; few groups, because each is communicated by itself."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rates = peak_rates(settings)
    for name, value in model.named_parameters():
        if value.requires_grad:
            peak = rates[part_of(model, name, value)]
            groups.setdefault((peak, settings.weight_decay if value.ndim > 1 else 0.0), []).append(value)
    return [
        {"params": values, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), values in groups.items()
    ]


def parameter_table(model: VisualChatForConditionalGeneration, settings: RunConfig) -> str:
    """Which parameters are trained and which are frozen, as a table of text."""
    rates = peak_rates(settings)
    how = {
        "language": settings.train_language + (f", {settings.quantize}" if settings.quantize != "none" else ""),
        "embeddings": "full" if settings.train_embeddings else "frozen",
        "projector": "full" if settings.train_projector else "frozen",
        "vision": settings.train_vision,
    }
    total, trained = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for name, value in model.named_parameters():
        part = part_of(model, name, value)
        total[part] += n_weights(value)
        trained[part] += n_weights(value) * value.requires_grad
    rows = [("part", "parameters", "trained", "how", "peak rate")]
    for part in PARTS:
        rate = f"{rates[part]:g}" if trained[part] else ""
        rows.append((part, f"{total[part]:,}", f"{trained[part]:,}", how[part], rate))
    rows.append(("all", f"{sum(total.values()):,}", f"{sum(trained.values()):,}", "", ""))
    sides = ("left", "right", "right", "left", "right")
    return tabulate(rows, tablefmt="plain", colalign=sides, disable_numparse=True)


def _freeze_unused(model: VisualChatForConditionalGeneration) -> None:
    """Freeze the parameters of the vision tower that do not take part in making an image's features."""
    side = model.config.image_size
    trained = [value for value in model.vision_tower.parameters() if value.requires_grad]
    features = model.vision_tower(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=model.device))
    gradients = torch.autograd.grad(features.float().sum(), trained, allow_unused=True)
    for value, gradient in zip(trained, gradients, strict=True):
        value.requires_grad_(gradient is not None)
