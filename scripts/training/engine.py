"""One optimisation step over a global batch, with DeepSpeed underneath: the part of training that is arithmetic.

Given the model and this rank's micro-batches of step s, it computes the loss of the *global* batch - the sum of all
cross-entropies over the number of all supervised tokens, on all ranks and in all micro-batches - and its exact
gradient. So a long answer weighs as much as it has tokens, wherever it was computed, and losses do not depend on how
work is divided.

A frozen vision tower stays outside the engine: it needs no gradient, no optimiser and no sharding (which would gather
its weights in every step); one that is trained lies inside. Rates are set from the step number, so there is no
scheduler state to save.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from model.modeling import VisualChatForConditionalGeneration, count_documents
from scripts.sections.run import Run
from scripts.training.batches import Batch
from scripts.training.trainable import parameter_groups

_MOMENTS = ("exp_avg", "exp_avg_sq")
_EPSILON = 1e-8


@dataclass
class Measured:
    """Losses over all ranks: sums of cross-entropies and numbers of supervised tokens, by dataset."""

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

    def by_dataset(self) -> dict[str, dict[str, Any]]:
        """Mean cross-entropy and supervised tokens of every dataset that occurs."""
        rows = zip(self.datasets, self.losses.tolist(), self.labels.tolist(), strict=True)
        return {name: {"loss": loss / count, "supervised_tokens": int(count)} for name, loss, count in rows if count}


@dataclass
class StepResult:
    """What a step was like. `places` counts padding too; `stop` says that some rank was asked to end."""

    measured: Measured
    learning_rate: float
    grad_norm: float
    tokens: int
    places: int
    stop: bool

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.measured.loss) and math.isfinite(self.grad_norm)


class RowLosses(nn.Module):
    """The model as the engine runs it: the sum of the labels' cross-entropies, in all and for each document."""

    def __init__(self, model: VisualChatForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum (scalar) and the sums by document, the latter without gradient, in float64.

        Without `document_ids` every row of the batch is a document.
        """
        losses, numbers = self.model.token_losses(**inputs)
        documents = count_documents(inputs["input_ids"], inputs.get("document_ids"))
        by_document = torch.zeros(documents, dtype=torch.float64, device=losses.device)
        by_document.index_add_(0, numbers, losses.detach().double())
        return losses.sum(), by_document


class Engine:
    """A model in training on this rank. Every method is collective: all ranks call it with the same step."""

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        settings: Run,
        *,
        datasets: Sequence[str],
        accumulation: int,
        steps: int,
    ):
        """Hand DeepSpeed what `trainable.prepare` has marked. `accumulation` micro-batches make a step of this rank."""
        self.settings, self.datasets, self.steps = settings, list(datasets), steps
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.device = torch.device(deepspeed.accelerator.get_accelerator().current_device_name())
        self.tower = None
        if not any(value.requires_grad for value in model.vision_tower.parameters()):
            self.tower = model.detach_vision_tower().to(self.device, _dtype(settings)).eval()
        groups = parameter_groups(model, settings)
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        # DeepSpeed's own Adam would be compiled on first use, which takes minutes and a compiler.
        optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=_EPSILON)
        self._engine, *_ = deepspeed.initialize(
            model=RowLosses(model),
            optimizer=optimizer,
            model_parameters=[value for group in groups for value in group["params"]],
            config=deepspeed_config(settings, accumulation, sum(value.numel() for value in self.trained.values())),
        )
        self._adam = optimizer
        if settings.zero in (1, 2):
            _make_moments(optimizer)

    def step(self, step: int, batches: Sequence[Batch], stop: bool = False) -> StepResult:
        """Take the 0-based step `step`. Any rank may set `stop`; all learn of it."""
        self._engine.train()
        torch.manual_seed(step_seed(self.settings.seed, step, self.rank))
        labels, counts = self._add_up(batches, stop)
        # DeepSpeed averages gradients over ranks; the loss is a mean over the labels of all ranks.
        scale = self.ranks / float(labels.sum())
        losses = torch.zeros(len(self.datasets), dtype=torch.float64)
        for place, batch in enumerate(batches):
            total, by_document = self._engine(**self._inputs(batch))
            self._engine.backward(total * scale, scale_wrt_gas=False)
            self._count_losses(losses, batch, by_document)
            if place == len(batches) - 1:
                norm = self._norm_before_step()
                rate = self._set_rates(learning_rate(self.settings, step, self.steps))
            self._engine.step()
        self._sum(losses)
        found = self._engine.get_global_grad_norm() if norm is None else norm
        tokens, places, stops = counts
        return StepResult(Measured(self.datasets, losses, labels), rate, float(found), tokens, places, bool(stops))

    def evaluate(self, batches: Iterable[Batch]) -> Measured:
        """Measure the loss on `batches` of this rank (equally many on each) together with the other ranks."""
        self._engine.eval()
        losses, labels = torch.zeros(2, len(self.datasets), dtype=torch.float64)
        with torch.no_grad():
            for batch in batches:
                _, by_document = self._engine(**self._inputs(batch))
                self._count_losses(losses, batch, by_document)
                labels += torch.tensor([batch.labels[name] for name in self.datasets])
        return Measured(self.datasets, self._sum(losses), self._sum(labels))

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights in fp32, whole, by name; all ranks must call it."""
        return {name: self._full(value, None) for name, value in self.trained.items()}

    def state(self) -> dict[str, Tensor]:
        """Return weights and moments in the form of a checkpoint, see `state.py`; all ranks must call it."""
        tensors = {f"weight/{name}": value for name, value in self.weights().items()}
        for moment in _MOMENTS:
            tensors |= {f"{moment}/{name}": self._full(value, moment) for name, value in self.trained.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor], step: int, filler: Batch, accumulation: int) -> None:
        """Continue from the state after `step` steps; the model must already have been built with its weights.

        AdamW makes its moments in its first step, and DeepSpeed links them to its shards then. So one step is taken
        with a rate of zero and a gradient of zero (`filler` has no label), which changes nothing, before the true
        values are set.
        """
        self._engine.train()
        self._set_rates(0.0)
        for _ in range(accumulation):
            total, _ = self._engine(**self._inputs(filler))
            self._engine.backward(total * 0.0, scale_wrt_gas=False)
            self._engine.step()
        for name, value in self.trained.items():
            self._set_full(value, None, tensors[f"weight/{name}"])
            for moment in _MOMENTS:
                self._set_full(value, moment, tensors[f"{moment}/{name}"])
        for state in self._adam.state.values():
            state["step"].fill_(step)

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        names = ("input_ids", "labels", "modality", "document_ids", "pixel_values")
        # Batches lie in page-locked memory where there is a GPU, so copying them need not wait.
        inputs = {
            name: batch.tensors[name].to(self.device, non_blocking=True) for name in names if name in batch.tensors
        }
        if "pixel_values" in inputs and self.tower is not None:
            with torch.no_grad():
                inputs["image_features"] = self.tower(inputs.pop("pixel_values"))
        return inputs

    def _add_up(self, batches: Sequence[Batch], stop: bool) -> tuple[Tensor, tuple[int, int, int]]:
        """Return the supervised tokens of all ranks by dataset, and tokens, places and wishes to stop."""
        labels = [sum(batch.labels[name] for batch in batches) for name in self.datasets]
        counts = [sum(batch.tokens for batch in batches), sum(batch.places for batch in batches), int(stop)]
        total = self._sum(torch.tensor(labels + counts, dtype=torch.float64))
        tokens, places, stops = total[len(labels) :].tolist()
        return total[: len(labels)], (int(tokens), int(places), int(stops))

    def _count_losses(self, losses: Tensor, batch: Batch, by_document: Tensor) -> None:
        for dataset, loss in zip(batch.datasets, by_document.tolist(), strict=True):
            if dataset:
                losses[self.datasets.index(dataset)] += loss

    def _sum(self, values: Tensor) -> Tensor:
        """Add `values` (on the CPU) up over all ranks, in place."""
        if self.ranks > 1:
            moved = values.to(self.device)
            dist.all_reduce(moved)
            values.copy_(moved)
        return values

    def _set_rates(self, factor: float) -> float:
        """Set every group's rate to its peak times `factor`; return the language model's."""
        for group in self._adam.param_groups:
            group["lr"] = group["peak"] * factor
        return self.settings.learning_rate * factor

    def _norm_before_step(self) -> float | None:
        """Return the norm of the gradient where DeepSpeed does not tell it (stage 0)."""
        if self.settings.zero:
            return None
        gradients = [value.grad for value in self.trained.values() if value.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    def _full(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        if self.settings.zero == 0:
            value = self._adam.state[parameter][moment] if moment else parameter
        elif moment:
            value = safe_get_full_optimizer_state(parameter, moment)
        else:
            value = safe_get_full_fp32_param(parameter)
        return value.detach().to("cpu", torch.float32, copy=True)

    def _set_full(self, parameter: nn.Parameter, moment: str | None, value: Tensor) -> None:
        value = value.to(self.device)
        if self.settings.zero == 0:
            with torch.no_grad():
                (self._adam.state[parameter][moment] if moment else parameter).copy_(value)
        elif moment:
            safe_set_full_optimizer_state(parameter, value, moment)
        else:
            safe_set_full_fp32_param(parameter, value)


def _make_moments(optimizer: torch.optim.AdamW) -> None:
    """Give every group its moments now.

    Stages 1 and 2 learn where the moments lie in the first step, but after its first group only; the moments of
    further groups, which AdamW would make a moment later, could never be read or set.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = {moment: torch.zeros_like(parameter, memory_format=torch.preserve_format) for moment in _MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(0.0)} | state


def learning_rate(settings: Run, step: int, steps: int) -> float:
    """Return the rate of the 0-based `step` of `steps` as a share of the peak: a linear rise, then a fall."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - 1 - settings.warmup_steps)
    fall = {"constant": 0.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}[settings.schedule]
    return 1 - (1 - settings.final_learning_rate) * fall


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a rank's random numbers (dropout) in a step: a function, so that nothing need be saved."""
    digest = hashlib.blake2b(f"{seed}:{step}:{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def deepspeed_config(settings: Run, accumulation: int, trained: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration; its optimiser and schedule sections stay empty, ours are used."""
    bucket = min(max(trained, 1), 500_000_000)
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.clip,
        "steps_per_print": None,
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_optimization": {
            "stage": settings.zero,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
    }


def _dtype(settings: Run) -> torch.dtype:
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32
