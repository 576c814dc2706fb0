"""Number formats of training, and the loss scale that fp16 needs.

fp16 has five bits of exponent: gradients below 6e-8 become zero, sums above 65504 infinite. So the loss is multiplied
by a scale before the backward pass and the gradient divided by it afterwards, in fp32 (Micikevicius et al., arXiv
1710.03740, section 3.2). A gradient that is still infinite is discarded and the scale halved; after many
steps without one it is doubled. The scale belongs to the state of a run: what a step does depends on it.

DeepSpeed has a scale for each of its optimizers, with its own rules. This one is used at every ZeRO stage instead,
so that the numbers do not depend on the stage, and a checkpoint fits all.
"""

from dataclasses import dataclass

import torch

from scripts.config.run import RunConfig

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """The type of weights and activations for a run's setting `precision`."""
    return _TYPES[precision]


@dataclass
class LossScale:
    """What the loss is multiplied by; it doubles after `interval` steps without a change, which `good` counts."""

    scale: float = 2.0**16
    good: int = 0
    interval: int = 1000

    @classmethod
    def of(cls, settings: RunConfig) -> "LossScale | None":
        """The scale that a run begins with, or None where its format needs none."""
        return cls() if settings.precision == "fp16" else None

    @property
    def exhausted(self) -> bool:
        """Whether gradients were infinite at the smallest sensible scale, so that smaller ones will not help."""
        return self.scale < 1

    def update(self, overflowed: bool) -> None:
        """Record whether the gradient of a step was infinite, and adapt the scale."""
        self.good = 0 if overflowed else self.good + 1
        if overflowed:
            self.scale /= 2
        elif self.good == self.interval:
            self.scale, self.good = self.scale * 2, 0
