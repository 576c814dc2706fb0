"""Applies what earlier stages of training have changed to the weights of a model (see `scripts/training/start.py`).

Stages are applied one after the other, as they were trained: plain weights replace those of the model, adapters are
merged into the weight beside them in double precision, and the sum is rounded once to the precision of the run. In bf16
that rounding costs what is smaller than 1/256 of a weight; fp32 keeps it to seven digits. Adapters that the next stage
continues to train are not merged, because that stage has their later values.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.common.tensors import read_tensors
from scripts.inference.lora import merge_target, merge_weights

Stages = Sequence[Mapping[str, Any]]
"""Of each stage: `lora_scale` of its adapters, and the parts whose adapters are `continued`; see `Stage`."""


def apply_stages(model: nn.Module, stages: Stages, files: Sequence[Path], dtype: torch.dtype) -> set[str]:
    """Put what `stages` have trained, the contents of `files`, into a model without adapters.

    The weights that change are in `dtype` afterwards, whatever the model's files have. Returns their names.

    Raises:
        UserError: a file is missing or damaged, or its weights do not fit the model.
    """
    changed: set[str] = set()
    for stage, weights, _ in _read(stages, files):
        merge_weights(model, weights, stage["lora_scale"], dtype)
        changed.update(merge_target(name) for name in weights)
    return changed


def initial_values(stages: Stages, files: Sequence[Path]) -> dict[str, Tensor]:
    """The fp32 weights that the stages end with, by parameter name, as far as they are known beyond the model's dtype.

    These are the weights that a stage has trained and no later one has merged adapters into, and the adapters that are
    continued after the last stage. Training goes on from them exactly, whatever its precision.
    """
    values: dict[str, Tensor] = {}
    for _, weights, kept in _read(stages, files):
        adapted = {merge_target(name) for name in weights if merge_target(name) != name}
        values = {name: value for name, value in values.items() if name not in adapted and "lora_" not in name}
        values |= {name: value for name, value in weights.items() if merge_target(name) == name} | kept
    return values


def _read(
    stages: Stages, files: Sequence[Path]
) -> Iterator[tuple[Mapping[str, Any], dict[str, Tensor], dict[str, Tensor]]]:
    """Yield every stage with its weights: those to put into the model, and the adapters that are continued."""
    for stage, file in zip(stages, files, strict=True):
        weights = read_tensors(file)
        kept = {name: value for name, value in weights.items() if _part_of_adapter(name) in stage["continued"]}
        yield stage, {name: value for name, value in weights.items() if name not in kept}, kept


def _part_of_adapter(name: str) -> str:
    """The part that an adapter's weight belongs to: language or vision; "" for other weights."""
    if merge_target(name) == name:
        return ""
    return "vision" if name.startswith("vision_tower.") else "language"
