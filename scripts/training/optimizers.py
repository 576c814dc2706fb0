"""The optimizers that a run may choose: how each is built, and what of its state a checkpoint keeps.

To add one:
1. write a function below that builds it from parameter groups, settings and the device of the forward pass, and
   register it with the names of the tensors that it keeps in `optimizer.state` for every parameter. They must have the
   parameter's shape and be zero before the first step. What follows (portable checkpoints, every ZeRO stage, the
   estimate of memory) reads them here.
2. add its name to `RunConfig.optimizer`.

The parameter groups hold `params`, `lr`, `peak` and `weight_decay`; the engine sets `lr` before every step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from scripts.config.run import RunConfig

_EPSILON = 1e-8

Build = Callable[[list[dict[str, Any]], RunConfig, torch.device], torch.optim.Optimizer]


@dataclass(frozen=True)
class OptimizerEntry:
    """One optimizer. `state_names`: the tensors that it keeps of every parameter, in the order of the checkpoint."""

    build: Build
    state_names: tuple[str, ...]

    def make_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Give every parameter its state now, as it is before the first step.

        DeepSpeed's stages 1 and 2 look up where the state lies in the first step, but after its first group only; the
        state of further groups, which the optimizer would make a moment later, could never be read or set.
        """
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                tensors = {
                    name: torch.zeros_like(parameter, memory_format=torch.preserve_format) for name in self.state_names
                }
                # A fused optimizer counts its steps on the device; all others on the CPU.
                device = parameter.device if group.get("fused") else torch.device("cpu")
                optimizer.state[parameter] = {"step": torch.zeros((), device=device)} | tensors


OPTIMIZERS: dict[str, OptimizerEntry] = {}


def register(name: str, state_names: tuple[str, ...]) -> Callable[[Build], Build]:
    """Register the function that builds the optimizer `name`."""

    def add(build: Build) -> Build:
        OPTIMIZERS[name] = OptimizerEntry(build, state_names)
        return build

    return add


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Set the number of updates made so far, for an optimizer whose step depends on it."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(updates)


@register("adamw", ("exp_avg", "exp_avg_sq"))
def _adamw(groups: list[dict[str, Any]], settings: RunConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), of PyTorch: DeepSpeed's would be compiled on first use.

    That takes minutes and a compiler, which a machine need not have. Fused, it updates all parameters of a device in
    one pass over the memory: on a GPU, and on the CPU where its state is offloaded. A run on CPUs alone is not fused:
    its numbers would differ in the last bit from those of earlier runs.
    """
    fused = True if device.type == "cuda" or settings.offload != "none" else None
    return torch.optim.AdamW(groups, 0.0, settings.betas, _EPSILON, fused=fused)
