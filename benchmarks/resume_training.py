"""Whether an interrupted run ends with the same numbers on this device, and the time of a step.

    python -m benchmarks.resume_training [--layers 8] [--width 1024] [--conversations 96] [--steps 6]

The model and packs of `benchmarks.train`, one rank, in one process. Every case takes half of the steps, saves the state
of a checkpoint, and takes the rest; then a new engine continues from the saved state. The program prints whether
losses, gradient norms, weights and moments of both are equal, bit for bit, and the median time of a step. The first
case also runs with the fastest algorithms, with which the numbers need not be equal on a GPU.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.train_data import Shape, load, load_processor, write_data, write_model

if TYPE_CHECKING:
    from scripts.config.run import RunConfig
    from scripts.training.engine import EngineFacts

    SavedState = tuple[dict[str, torch.Tensor], EngineFacts]

CASES: dict[str, dict[str, Any]] = {
    "mmca, stage 2": {"zero": 2, "train_language": "full"},
    "mmca, stage 3, checkpointing": {"zero": 3, "train_language": "full", "gradient_checkpointing": True},
    "causal, stage 1, LoRA": {"zero": 1, "train_language": "lora", "attention": "causal", "lora_dropout": 0.1},
    "dattn, stage 2, encoder": {"zero": 2, "train_language": "full", "attention": "dattn", "train_vision": "full"},
    "mmca, stage 0, frozen": {"zero": 0},
}


def start_engine(folder: Path, run: "RunConfig", saved: "SavedState | None") -> tuple[Any, Any]:
    """An engine, which continues from the `saved` state if there is one, and its batches."""
    from scripts.inference.blend_reader import BlendReader
    from scripts.training.checkpoints import load_weights, weights_of
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine
    from scripts.training.trainable import mark_trainable

    reader = BlendReader(folder / "packed", folder)
    model, processor = load(folder, run.attention)
    batches = MicroBatchDataset(
        [reader], processor, model.layout_options(), global_batch=reader.global_batch, micro_batch=run.micro_batch
    )
    mark_trainable(model, run)
    if saved:
        load_weights(model, weights_of(saved[0]))
    engine = TrainingEngine(model, run, datasets=["one"], accumulation=batches.accumulation, steps=batches.steps)
    if saved:
        engine.restore(*saved, batches.filler(), batches.accumulation)
    return engine, batches


def take_steps(engine: Any, batches: Any, steps: range) -> tuple[list[tuple[float, float]], list[float]]:
    """Losses and gradient norms of `steps`, and their seconds, from the first read to the result."""
    feed, results, seconds = engine.feed(batches.load(steps.start, 0)), [], []
    for step in steps:
        start = time.perf_counter()
        result = engine.step(step, feed)
        results.append((result.losses.loss, result.grad_norm))
        seconds.append(time.perf_counter() - start)
    return results, seconds


def compare(folder: Path, run: "RunConfig", count: int) -> tuple[bool, float]:
    """Whether a run of `count` steps and an interrupted one end with the same numbers, and the seconds of a step."""
    engine, batches = start_engine(folder, run, None)
    first, rest = range(count // 2), range(count // 2, count)
    take_steps(engine, batches, first)
    saved = {name: value.clone() for name, value in engine.state().items()}, engine.facts()
    expected, seconds = take_steps(engine, batches, rest)
    expected_state = engine.state()
    engine, batches = start_engine(folder, run, saved)
    results, more_seconds = take_steps(engine, batches, rest)
    state = engine.state()
    equal = results == expected and all(torch.equal(expected_state[name], state[name]) for name in expected_state)
    return equal, median(seconds + more_seconds)


def main() -> None:
    """Run the program."""
    from scripts.config.run import RunConfig
    from scripts.training.worker import enable_determinism, start_distributed

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--layers", type=int, default=8)
    arguments.add_argument("--width", type=int, default=1024)
    arguments.add_argument("--vocabulary", type=int, default=32000)
    arguments.add_argument("--conversations", type=int, default=96)
    arguments.add_argument("--step-tokens", type=int, default=8192, help="approximate number of tokens in a step")
    arguments.add_argument("--steps", type=int, default=6)
    args = arguments.parse_args()
    on_gpu = torch.cuda.is_available()
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29590",
    }
    start_distributed()
    print(torch.cuda.get_device_name() if on_gpu else "CPU", f"torch {torch.__version__}", sep=", ")
    common: dict[str, Any] = {
        "model": "m",
        "blend": "b",
        "ranks": 1,
        "micro_batch": 2,
        "schedule": "constant",
        "learning_rate": 1e-4,
        "precision": "bf16" if on_gpu else "fp32",
    }
    with tempfile.TemporaryDirectory(prefix="resume-") as scratch:
        folder = Path(scratch)
        write_model(folder, Shape(width=args.width, layers=args.layers, vocabulary=args.vocabulary))
        write_data(folder, args.conversations, args.step_tokens, load_processor(folder))
        first = next(iter(CASES))
        equal, seconds = compare(folder, RunConfig(**common, **CASES[first]), args.steps)
        print(f"{first}, fastest algorithms: equal {equal}, {seconds:.3f} s per step", flush=True)
        enable_determinism()
        for name, settings in CASES.items():
            equal, seconds = compare(folder, RunConfig(**common, **settings), args.steps)
            print(f"{name}: equal {equal}, {seconds:.3f} s per step", flush=True)


if __name__ == "__main__":
    main()
