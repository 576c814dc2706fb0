"""The trainings that `benchmarks.train` compares: each is a function that prepares one and returns it step by step.

A process runs one of them (`python -m benchmarks.train --candidate NAME`), or on several GPUs one process per GPU, and
prints its measurements as JSON. The time of the first step is left out: libraries allocate and compile on first use.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measuring import peak_memory, reset_peak_memory
from benchmarks.train_baseline import BaselineModel, padded
from benchmarks.train_data import load
from scripts.config.run import RunConfig


@dataclass(frozen=True)
class Options:
    """How the candidates train. `rows`: of a micro-batch that is not packed; `packs`: of one that is."""

    rows: int = 4
    packs: int = 1
    workers: int = 0
    ranks: int = 1
    deterministic: bool = True


class Step(NamedTuple):
    """The cost and the result of a training step.

    `cpu_seconds` are those of this process, `data_seconds` its share of waiting for data. `labels` and `flops` are of
    all ranks; `flops` is 0 where they are not counted.
    """

    seconds: float
    cpu_seconds: float
    data_seconds: float
    labels: int
    flops: float
    loss: float


def settings(options: Options, micro_batch: int) -> RunConfig:
    """The run of all candidates."""
    return RunConfig(
        model="m",
        blend="b",
        ranks=options.ranks,
        zero=2,
        schedule="constant",
        micro_batch=micro_batch,
        precision="bf16" if torch.cuda.is_available() else "fp32",
    )


def ours(folder: Path, options: Options) -> Iterator[Step]:
    """The training of `scripts.train`: packs, the loader and the engine."""
    import torch.distributed as dist

    from scripts.inference.blend_reader import BlendReader
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine, compute_device
    from scripts.training.precision import dtype_of
    from scripts.training.trainable import mark_trainable
    from scripts.training.worker import enable_determinism

    run = settings(options, options.packs)
    if options.deterministic:
        enable_determinism()
    reader = BlendReader(folder / "packed", folder)
    model, processor = load(folder)
    batches = MicroBatchDataset(
        [reader],
        processor,
        model.train().layout_options(compute_device(), dtype_of(run.precision)),
        global_batch=reader.global_batch,
        micro_batch=run.micro_batch,
        rank=dist.get_rank(),
        ranks=options.ranks,
    )
    mark_trainable(model, run)
    engine = TrainingEngine(model, run, datasets=["one"], accumulation=batches.accumulation, steps=batches.steps)

    def train() -> Iterator[Step]:
        feed = engine.feed(batches.load(0, options.workers))
        for step in range(batches.steps):
            clock, cpu, waited = time.perf_counter(), time.process_time(), feed.waited
            result = engine.step(step, feed)
            costs = time.perf_counter() - clock, time.process_time() - cpu, feed.waited - waited
            yield Step(*costs, result.losses.supervised, result.flops, result.losses.loss)

    return train()


def baseline(folder: Path, options: Options) -> Iterator[Step]:
    """A plain loop around `deepspeed.initialize`, like the original's; it has no packs and no workers."""
    import deepspeed
    import torch.distributed as dist

    from scripts.inference.blend_reader import BlendReader
    from scripts.training.dataset import count_pairs
    from scripts.training.deepspeed_config import deepspeed_config
    from scripts.training.flops import Flops
    from scripts.training.trainable import mark_trainable

    run = settings(options, options.rows)
    reader = BlendReader(folder / "baseline", folder)
    parts, processor = load(folder)
    mark_trainable(parts, run)
    # What MMCA needs: the same operations for the same conversations as ours, whatever the dense form computes.
    counter = Flops(parts)
    model = BaselineModel(parts)
    trained = [value for value in model.parameters() if value.requires_grad]
    rank, together = dist.get_rank(), options.rows * options.ranks
    micros = max(1, reader.global_batch // together)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(trained, run.language_rate, run.betas, weight_decay=0.0),
        model_parameters=trained,
        config=deepspeed_config(run, micros, sum(value.numel() for value in trained), torch.cuda.is_available()),
    )
    # Every rank makes as many passes as the others, or they would wait for each other for ever.
    last = len(reader) - (len(reader) % together if options.ranks > 1 else 0)

    def train() -> Iterator[Step]:
        position = 0
        while position < last:
            clock, cpu, waited = time.perf_counter(), time.process_time(), 0.0
            totals = torch.zeros(3, dtype=torch.float64)  # labels, flops, sum of losses
            for _ in range(micros):
                if position >= last:
                    break
                first = position + rank * options.rows
                position += together
                begin = time.perf_counter()
                batch = padded(reader, processor, range(first, min(first + options.rows, last)))
                count = int((batch["labels"] >= 0).sum())
                pairs = count_pairs(batch["modality"], None, "self")
                flops = counter.count(
                    int(batch["attention_mask"].sum()), count, len(batch.get("pixel_values", ())), pairs
                )
                inputs = {name: value.to(engine.device) for name, value in batch.items()}
                waited += time.perf_counter() - begin
                loss = engine(**inputs)
                engine.backward(loss)
                engine.step()
                totals += torch.tensor([count, flops, float(loss.detach()) * count], dtype=torch.float64)
            if options.ranks > 1:
                shared = totals.to(engine.device)
                dist.all_reduce(shared)
                totals = shared.cpu()
            labels, flops, losses = totals.tolist()
            costs = time.perf_counter() - clock, time.process_time() - cpu, waited
            yield Step(*costs, int(labels), flops, losses / labels)

    return train()


CANDIDATES: dict[str, Callable[[Path, Options], Iterator[Step]]] = {"ours": ours, "plain loop": baseline}


def run_candidate(name: str, folder: Path, options: Options) -> None:
    """Run one candidate in this process; rank 0 prints its measurements as JSON."""
    from scripts.training.worker import start_distributed

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    start_distributed()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    training = CANDIDATES[name](folder, options)
    before = reset_peak_memory(device)
    steps = list(training)
    if os.environ["RANK"] == "0":
        print(json.dumps(measurements(steps, before, peak_memory(device))))


def measurements(steps: list[Step], before: int, peak: int) -> dict[str, float]:
    """Sums over all steps but the first, losses at both ends, and bytes of memory: at the peak, and thereof added."""
    timed = steps[1:] or steps
    sums = {field: sum(getattr(step, field) for step in timed) for field in Step._fields if field != "loss"}
    ends = {"first_loss": steps[0].loss, "last_loss": steps[-1].loss, "all_labels": sum(s.labels for s in steps)}
    return sums | ends | {"steps": len(steps), "memory": peak, "added": peak - before}
