"""The results of a training step and of an evaluation: losses by dataset, rates, gradient norm and counts.

They are sums over all ranks, so every rank holds the same values.
"""

import math
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


class DatasetLoss(TypedDict):
    """Mean cross-entropy per supervised token of one dataset, and the number of these tokens."""

    loss: float
    supervised_tokens: int


@dataclass
class LossTotals:
    """Sums over all ranks, by dataset: cross-entropies and supervised tokens, both (datasets,) float64."""

    datasets: list[str]
    losses: Tensor
    labels: Tensor

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return int(self.labels.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy per supervised token."""
        return (self.losses.sum() / self.labels.sum()).item()

    def by_dataset(self) -> dict[str, DatasetLoss]:
        """The losses of every dataset that occurs."""
        rows = zip(self.datasets, self.losses.tolist(), self.labels.tolist(), strict=True)
        return {name: {"loss": loss / count, "supervised_tokens": int(count)} for name, loss, count in rows if count}


@dataclass
class StepResult:
    """The result of a step.

    `learning_rate`: of the language model; `learning_rates`: by trained part. `tokens` are without padding,
    `padded_tokens` with it. `flops`: operations of all ranks. `stop`: some rank was asked to stop. `skipped`: the
    gradient overflowed in fp16, and nothing was changed.
    """

    losses: LossTotals
    learning_rate: float
    learning_rates: dict[str, float]
    grad_norm: float
    tokens: int
    padded_tokens: int
    flops: float
    stop: bool
    skipped: bool = False

    @property
    def finite(self) -> bool:
        """Whether the run may go on: loss and gradient are finite, or the step was skipped for its loss scale."""
        return math.isfinite(self.losses.loss) and (self.skipped or math.isfinite(self.grad_norm))
