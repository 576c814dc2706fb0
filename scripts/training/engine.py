"""One optimisation step over a global batch, computed by DeepSpeed: the numerical part of training.

Given the model and this rank's micro-batches of step s, it computes the loss of the *global* batch - the sum of all
cross-entropies over the number of all supervised tokens, on all ranks and in all micro-batches - and its exact
gradient. So a long answer weighs as much as it has tokens, wherever it was computed, and losses do not depend on how
work is divided.

A frozen vision tower stays outside the engine: it needs no gradient, no optimizer and no sharding (which would gather
its weights in every step); one that is trained lies inside. With `features: true` batches hold the output of the frozen
tower, and no rank keeps it. Rates are set from the step number, so there is no scheduler state to save. A step whose
loss or gradient is not finite changes nothing: with fp16 it is skipped and the loss scale lowered, otherwise it ends
the run.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from model.modeling import VisualChatForConditionalGeneration
from scripts.config.run import RunConfig
from scripts.training.checkpointed_layers import checkpoint_layers
from scripts.training.compiled_layers import compile_layers
from scripts.training.dataset import MicroBatch, StepCounts
from scripts.training.deepspeed_config import deepspeed_config
from scripts.training.feed import MicroBatchFeed
from scripts.training.flops import Flops
from scripts.training.fused_layers import fuse_layers
from scripts.training.optimizers import OPTIMIZERS, set_updates
from scripts.training.partition import partition
from scripts.training.precision import LossScale, dtype_of
from scripts.training.schedules import rate_factor
from scripts.training.step_result import LossTotals, StepResult
from scripts.training.trainable import parameter_groups, part_of, peak_rates


class EngineFacts(TypedDict):
    """The part of an engine's state that is not tensors: updates made, and the fields of the loss scale."""

    updates: int
    loss_scale: dict[str, Any] | None


class LossModule(nn.Module):
    """The model as DeepSpeed runs it: the cross-entropies of a micro-batch."""

    def __init__(self, model: VisualChatForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Return their sum (scalar), and all of them (n,) without gradient, in float64.

        `inputs` are those of `VisualChatForConditionalGeneration.label_losses`.
        """
        losses = self.model.label_losses(**inputs)
        return losses.sum(), losses.detach().double()


class TrainingEngine:
    """A model in training on this rank. Every method is collective: all ranks call it with the same step."""

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        settings: RunConfig,
        *,
        datasets: Sequence[str],
        accumulation: int,
        steps: int,
    ) -> None:
        """Hand DeepSpeed what `trainable.mark_trainable` has marked.

        Args:
            model: with its adapters, frozen and trained parameters marked.
            settings: of the run.
            datasets: names of all datasets that batches may hold.
            accumulation: micro-batches that make a step of this rank.
            steps: of the whole run, for the learning rate.
        """
        self.settings, self.datasets, self.steps = settings, list(datasets), steps
        self.accumulation = accumulation
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.device = compute_device()
        self.tower = None
        self._flops = Flops(model, features=settings.features)
        if not any(value.requires_grad for value in model.vision_tower.parameters()):
            tower = model.detach_vision_tower()
            self.tower = None if settings.features else tower.to(self.device).eval()
        checkpoint_layers(model, int(settings.gradient_checkpointing))
        if settings.fused_layers == "liger":
            fuse_layers(model.language_model)
        if settings.compile:
            compile_layers(model, settings.deterministic)
        groups = parameter_groups(model, settings)
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        parts = {part_of(model, name, value) for name, value in self.trained.items()}
        self._peaks = {part: peak for part, peak in peak_rates(settings).items() if part in parts}
        self._entry = OPTIMIZERS[settings.optimizer]
        self._optimizer = self._entry.build(groups, settings, self.device)
        # Until the first step: some of DeepSpeed's wrappers take a step with a gradient of zero to make the state.
        self._set_rates(0.0)
        self.config = deepspeed_config(
            settings, accumulation, sum(value.numel() for value in self.trained.values()), self.device.type != "cpu"
        )
        if settings.zero == 3:
            partition(model, self.config, self.device, dtype_of(settings.precision))
        self._engine, *_ = deepspeed.initialize(
            model=LossModule(model),
            optimizer=self._optimizer,
            model_parameters=[value for group in groups for value in group["params"]],
            config=self.config,
        )
        self._masters = _fp32_copies(self._engine.optimizer)
        self.updates, self.loss_scale = 0, LossScale.of(settings)
        if settings.zero in (1, 2):
            self._entry.make_state(self._optimizer)
        set_updates(self._optimizer, self.updates)

    def feed(self, batches: Iterable[MicroBatch]) -> MicroBatchFeed:
        """Bring micro-batches of this rank to its device, as the other methods take them."""
        return MicroBatchFeed(batches, self.device, self.tower)

    def step(self, step: int, feed: MicroBatchFeed, stop: bool = False) -> StepResult:
        """Take the 0-based step `step` with the next micro-batches of `feed`.

        Until the gradient is complete, nothing waits for the device. Any rank may set `stop`; the result of all ranks
        then has it.
        """
        self._engine.train()
        torch.manual_seed(step_seed(self.settings.seed, step, self.rank))
        factor = rate_factor(self.settings, step, self.steps)
        self._set_rates(factor)
        if self.loss_scale:
            self._engine.optimizer.loss_scale = self.loss_scale.scale
        losses = torch.zeros(len(self.datasets), dtype=torch.float64, device=self.device)
        counts, own = StepCounts(), [0.0, 0.0, float(stop)]
        for number in range(1, self.accumulation + 1):
            batch = feed.take()
            counts = batch.host.step
            own[0] += batch.host.padded_tokens
            own[1] += self._flops.of(batch.host)
            total, each = self._engine(**batch.inputs)
            self._engine.backward(total * self._scale(counts), scale_wrt_gas=False)
            losses.index_add_(0, batch.label_datasets, each)
            if number < self.accumulation:
                self._engine.step()
            feed.prepare()
        sums, (padded, flops, stops) = self._sum_step(losses, own)
        result = StepResult(
            losses=LossTotals(self.datasets, sums, self._by_dataset(counts.labels)),
            learning_rate=self.settings.language_rate * factor,
            learning_rates={part: peak * factor for part, peak in self._peaks.items()},
            grad_norm=math.nan,
            tokens=counts.tokens,
            padded_tokens=int(padded),
            flops=flops,
            stop=bool(stops),
        )
        if math.isfinite(result.losses.loss):
            self._update(result)
        return result

    def _update(self, result: StepResult) -> None:
        """Update the weights unless the gradient is not finite; set the norm (and `skipped`) of `result`."""
        plain = self.settings.zero == 0 and self.loss_scale is None and not self._masters
        if plain:
            # DeepSpeed neither measures this gradient nor checks that it is finite.
            gradients = [value.grad for value in self.trained.values() if value.grad is not None]
            result.grad_norm = torch.nn.utils.get_total_norm(gradients).item()
            if not math.isfinite(result.grad_norm):
                return
        self._engine.step()
        overflowed = not plain and bool(self._engine.optimizer.overflow)
        if not plain:
            norm = float(self._engine.get_global_grad_norm())
            if self.loss_scale and self.settings.zero == 0:
                # At stage 0 DeepSpeed's norm is that of the scaled gradient.
                norm /= self.loss_scale.scale
            result.grad_norm = math.inf if overflowed else norm
        if self.loss_scale:
            self.loss_scale.update(overflowed)
            result.skipped = overflowed and not self.loss_scale.exhausted
        self.updates += not overflowed

    def evaluate(self, batches: Iterable[MicroBatch], stop: Callable[[], bool] = lambda: False) -> LossTotals | None:
        """Measure the loss on `batches` of this rank (equally many on each) together with the other ranks.

        Return None as soon as `stop` is true on some rank.
        """
        self._engine.eval()
        losses = torch.zeros(len(self.datasets), dtype=torch.float64, device=self.device)
        labels = torch.zeros(len(self.datasets), dtype=torch.float64)
        with torch.no_grad():
            feed = self.feed(batches)
            for batch in feed:
                if self._sum(torch.tensor([float(stop())])).item():
                    return None
                _, each = self._engine(**batch.inputs)
                feed.prepare()
                losses.index_add_(0, batch.label_datasets, each)
                labels += self._by_dataset(batch.host.labels)
        return LossTotals(self.datasets, self._sum(losses.cpu()), self._sum(labels))

    def count_and_most(self, number: int) -> tuple[int, int]:
        """The sum and the maximum over all ranks of a number that each has."""
        numbers = torch.zeros(self.ranks)
        numbers[self.rank] = number
        self._sum(numbers)
        return int(numbers.sum()), int(numbers.max())

    def find_nonfinite(self, batches: Sequence[MicroBatch], filler: MicroBatch) -> list[int]:
        """Run `batches` of this rank one by one; return the numbers of those whose loss or gradient is not finite.

        Ranks may have different numbers of batches; those with fewer run `filler` in the meantime. Gradients are
        checked where every rank holds the weights whole, which is not so at stage 3.
        """
        self._engine.eval()
        nonfinite, weights = [], list(self.trained.values())
        for number in range(self.count_and_most(len(batches))[1]):
            batch = batches[number] if number < len(batches) else filler
            with torch.set_grad_enabled(self.settings.zero < 3):
                loss, each = self._engine.module(**self.feed([batch]).take().inputs)
                values = [each]
                if loss.requires_grad and number < len(batches):
                    scaled = loss * (self.loss_scale.scale if self.loss_scale else 1.0)
                    values += [g for g in torch.autograd.grad(scaled, weights, allow_unused=True) if g is not None]
            if not all(bool(value.isfinite().all()) for value in values):
                nonfinite.append(number)
        return nonfinite

    def weights(self) -> dict[str, Tensor]:
        """Return the trained weights in fp32, whole, by name."""
        return {name: self._full(value, None) for name, value in self.trained.items()}

    def state(self) -> dict[str, Tensor]:
        """Return weights and the optimizer's state as tensors of a checkpoint (see `checkpoints.py`)."""
        tensors = {f"weight/{name}": value for name, value in self.weights().items()}
        for part in self._entry.state_names:
            tensors |= {f"{part}/{name}": self._full(value, part) for name, value in self.trained.items()}
        return tensors

    def facts(self) -> EngineFacts:
        """The part of the state that is not tensors, as JSON values."""
        return {"updates": self.updates, "loss_scale": asdict(self.loss_scale) if self.loss_scale else None}

    def restore(self, tensors: dict[str, Tensor], facts: EngineFacts, filler: MicroBatch, accumulation: int) -> None:
        """Continue from what `state` and `facts` returned; the model must already hold the weights."""
        self._make_state(filler, accumulation)
        for name, value in self.trained.items():
            self._set_full(value, None, tensors[f"weight/{name}"])
            for part in self._entry.state_names:
                self._set_full(value, part, tensors[f"{part}/{name}"])
        self.updates = facts["updates"]
        if self.loss_scale and facts["loss_scale"]:
            self.loss_scale = LossScale(**facts["loss_scale"])
        set_updates(self._optimizer, self.updates)

    def set_weights(self, weights: Mapping[str, Tensor], filler: MicroBatch, accumulation: int) -> None:
        """Set the fp32 copies of trained `weights` before the first step; the model must already hold them, rounded."""
        self._make_state(filler, accumulation)
        for name, value in weights.items():
            self._set_full(self.trained[name], None, value)
        set_updates(self._optimizer, self.updates)

    def _make_state(self, filler: MicroBatch, accumulation: int) -> None:
        """Let the optimizer make its state, which it does in its first step, when DeepSpeed links it to its shards.

        So one step is taken with a rate of zero and a gradient of zero (`filler` has no label), which changes nothing.
        """
        self._engine.train()
        self._set_rates(0.0)
        for _ in range(accumulation):
            total, _ = self._engine(**self.feed([filler]).take().inputs)
            self._engine.backward(total * 0.0, scale_wrt_gas=False)
            self._engine.step()

    def _scale(self, counts: StepCounts) -> float:
        """What the sum of a micro-batch's losses is multiplied by, before DeepSpeed averages over ranks."""
        scale = self.ranks / counts.labels.total()
        # At stage 0 DeepSpeed divides the gradient by the scale, and leaves it to others to multiply the loss.
        return scale * self.loss_scale.scale if self.loss_scale and self.settings.zero == 0 else scale

    def _sum_step(self, losses: Tensor, counts: list[float]) -> tuple[Tensor, list[float]]:
        """Add up `losses` and `counts` over all ranks, in one collective, and bring the sums to the CPU."""
        total = torch.cat([losses, torch.tensor(counts, dtype=torch.float64, device=self.device)])
        if self.ranks > 1:
            dist.all_reduce(total)
        total = total.cpu()
        return total[: len(losses)], total[len(losses) :].tolist()

    def _by_dataset(self, labels: Mapping[str, int]) -> Tensor:
        """Counts by name as (datasets,) float64."""
        return torch.tensor([labels.get(name, 0) for name in self.datasets], dtype=torch.float64)

    def _sum(self, values: Tensor) -> Tensor:
        """Add `values` (on the CPU) up over all ranks, in place."""
        if self.ranks > 1:
            moved = values.to(self.device)
            dist.all_reduce(moved)
            values.copy_(moved)
        return values

    def _set_rates(self, factor: float) -> None:
        """Set every group's rate to its peak times `factor`."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _full(self, parameter: nn.Parameter, part: str | None) -> Tensor:
        """The whole fp32 weight of a parameter, or the `part` of the optimizer's state, as a copy on the CPU."""
        if self.settings.zero == 0:
            master = self._masters.get(id(parameter), parameter)
            value = self._optimizer.state[master][part] if part else master
        elif part:
            value = safe_get_full_optimizer_state(parameter, part)
        else:
            value = safe_get_full_fp32_param(parameter)
        return value.detach().to("cpu", torch.float32, copy=True)

    def _set_full(self, parameter: nn.Parameter, part: str | None, value: Tensor) -> None:
        """Set what `_full` returns."""
        value = value.to(self.device)
        if self.settings.zero == 0:
            master = self._masters.get(id(parameter), parameter)
            with torch.no_grad():
                (self._optimizer.state[master][part] if part else master).copy_(value)
        elif part:
            safe_set_full_optimizer_state(parameter, value, part)
        else:
            safe_set_full_fp32_param(parameter, value)


def compute_device() -> torch.device:
    """The device that this rank computes on."""
    return torch.device(deepspeed.accelerator.get_accelerator().current_device_name())


def _fp32_copies(optimizer: Any) -> dict[int, Tensor]:
    """The fp32 copies that DeepSpeed keeps of half-precision weights at stage 0, by the identity of the weight."""
    if not isinstance(optimizer, FP16_UnfusedOptimizer):
        return {}
    halves, copies = (itertools.chain(*groups) for groups in (optimizer.fp16_groups, optimizer.fp32_groups))
    return {id(half): copy for half, copy in zip(halves, copies, strict=True)}


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a rank's random numbers (dropout) in a step: a function, so that nothing need be saved."""
    digest = hashlib.blake2b(f"{seed}:{step}:{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
