"""The speed and memory of training, against a plain DeepSpeed loop like the original's.

    python -m benchmarks.train [--conversations 96] [--runs 5] --folder DIR

The same small model (a CLIP encoder, a Llama, the paper's projector; projector and embeddings are trained), the same
conversations over JPEGs, one rank, ZeRO 2, AdamW, fp32 on a CPU and bf16 on a GPU. Each candidate trains once over all
conversations, in a process of its own; the runs alternate.

    ours       `MicroBatchDataset` and `TrainingEngine` on a packed blend: what `python -m scripts.train` runs, on a GPU
               with deterministic algorithms
    baseline   a loop around `deepspeed.initialize` like the original's: conversations in random order, padded; JPEGs
               decoded by the main process; encoder inside the engine, logits at every token, dense MMCA
               (`train_baseline.py`)

Where the original is slower without need (it builds its masks in a Python loop), the baseline is not. Both predict the
same tokens from the same inputs, and a check before the first run compares the loss of the first conversations.

Measured are supervised tokens per second over all steps after the first: by the clock, and by the CPU time of this
process's one thread, which other work on the machine does not slow down (on a GPU only the clock is meaningful); and
peak memory: on a GPU the allocations of PyTorch, on a CPU the largest resident size of the process, in all and above
the size before the first step.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.train_baseline import BaselineModel, padded
from benchmarks.train_data import load, write_data, write_model
from scripts.config.run import RunConfig

ROOT = Path(__file__).resolve().parents[1]
MICRO = 4


class Step(NamedTuple):
    """The cost and the result of a training step."""

    seconds: float
    cpu_seconds: float
    labels: int
    loss: float


# ---- the candidates: each prepares its training and returns an iterator that runs it, step by step


def settings(micro_batch: int) -> RunConfig:
    """The run of both candidates."""
    return RunConfig(
        model="m",
        blend="b",
        ranks=1,
        zero=2,
        schedule="constant",
        micro_batch=micro_batch,
        precision="bf16" if torch.cuda.is_available() else "fp32",
    )


def ours(folder: Path, packs: int) -> Iterator[Step]:
    """The training of `scripts.train`: `packs` packs at once, and the engine."""
    from scripts.inference.blend_reader import BlendReader
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine
    from scripts.training.trainable import mark_trainable
    from scripts.training.worker import enable_determinism

    run = settings(packs)
    enable_determinism()
    reader = BlendReader(folder / "packed", folder)
    model, processor = load(folder)
    batches = MicroBatchDataset([reader], processor, global_batch=reader.global_batch, micro_batch=run.micro_batch)
    mark_trainable(model, run)
    engine = TrainingEngine(model, run, datasets=["one"], accumulation=batches.accumulation, steps=batches.steps)
    feed = batches.load(0, 0)

    def train() -> Iterator[Step]:
        for step in range(batches.steps):
            clock, cpu = time.perf_counter(), time.process_time()
            measured = engine.step(step, [next(feed) for _ in range(batches.accumulation)]).losses
            seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
            yield Step(seconds, cpu_seconds, measured.supervised, measured.loss)

    return train()


def baseline(folder: Path, packs: int) -> Iterator[Step]:
    """The loop like the original's; it has no packs."""
    import deepspeed

    from scripts.inference.blend_reader import BlendReader
    from scripts.training.deepspeed_config import deepspeed_config

    run = settings(MICRO)
    reader = BlendReader(folder / "baseline", folder)
    parts, processor = load(folder)
    model = BaselineModel(parts, folder)
    model.requires_grad_(False)
    for part in (model.projector, model.language.get_input_embeddings()):
        part.requires_grad_(True)
    trained = [value for value in model.parameters() if value.requires_grad]
    micros = max(1, reader.global_batch // MICRO)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(trained, run.learning_rate, run.betas, weight_decay=0.0),
        model_parameters=trained,
        config=deepspeed_config(run, micros, sum(value.numel() for value in trained), torch.cuda.is_available()),
    )

    def train() -> Iterator[Step]:
        position = 0
        while position < len(reader):
            clock, cpu, labels, losses = time.perf_counter(), time.process_time(), 0, 0.0
            for _ in range(micros):
                rows = range(position, min(position + MICRO, len(reader)))
                position = rows.stop
                if not rows:
                    break
                inputs = {name: value.to(engine.device) for name, value in padded(reader, processor, rows).items()}
                loss = engine(**inputs)
                engine.backward(loss)
                engine.step()
                count = int((inputs["labels"] >= 0).sum())
                labels, losses = labels + count, losses + float(loss) * count
            yield Step(time.perf_counter() - clock, time.process_time() - cpu, labels, losses / labels)

    return train()


# ---- the comparison


def run_candidate(name: str, folder: Path, packs: int) -> None:
    """Run one candidate in this process and print its measurements as JSON."""
    from scripts.training.worker import start_distributed

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    start_distributed()
    training = {"ours": ours, "baseline": baseline}[name](folder, packs)
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else resident()
    steps = list(training)
    timed = steps[1:]
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    labels = sum(step.labels for step in timed)
    measurements = {
        "per_second": labels / sum(step.seconds for step in timed),
        "per_cpu": labels / sum(step.cpu_seconds for step in timed),
        "memory": memory,
        "added": memory - before,
        "steps": len(steps),
        "first_loss": steps[0].loss,
        "last_loss": steps[-1].loss,
        "labels": sum(step.labels for step in steps),
    }
    print(json.dumps(measurements))


def resident() -> int:
    """The resident size of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def compare(folder: Path, runs: int, packs: int) -> dict[str, list[dict[str, float]]]:
    """Run both candidates `runs` times, alternating; returns their measurements."""
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    measured: dict[str, list[dict[str, float]]] = {"ours": [], "baseline": []}
    for number in range(runs):
        for name, results in measured.items():
            port = {"MASTER_PORT": str(29600 + 2 * number + (name == "baseline"))}
            threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "benchmarks.train", "--candidate", name, "--folder", str(folder)]
            command += ["--packs", str(packs)]
            environment = os.environ | variables | port | threads
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {results[-1]}", file=sys.stderr)
    return measured


def check_losses(folder: Path) -> None:
    """Raise RuntimeError unless both candidates compute the same loss for the first conversations."""
    from model.template import IGNORE_INDEX
    from scripts.inference.blend_reader import BlendReader

    reader = BlendReader(folder / "baseline", folder)
    model, processor = load(folder)
    inputs = padded(reader, processor, range(2))
    with torch.no_grad():
        losses, _ = model.token_losses(**inputs)
        expected = losses.mean()
        actual = BaselineModel(model, folder)(**inputs)
    assert losses.numel() == int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
    if abs(float(expected - actual)) > (0.05 if torch.cuda.is_available() else 1e-4):
        raise RuntimeError(f"the candidates compute different losses: {expected} and {actual}")


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, default=96)
    arguments.add_argument("--step-tokens", type=int, default=8192, help="approximate number of tokens in a step")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--packs", type=int, default=1, help="packs in a micro-batch of ours")
    arguments.add_argument("--width", type=int, default=256)
    arguments.add_argument("--layers", type=int, default=4)
    arguments.add_argument("--vocabulary", type=int, default=32000)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to work")
    arguments.add_argument("--candidate", choices=["ours", "baseline"], help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.candidate:
        run_candidate(args.candidate, args.folder, args.packs)
        return
    with tempfile.TemporaryDirectory(prefix="train-", dir=args.folder) as scratch:
        folder = Path(scratch)
        write_model(folder, args)
        write_data(folder, args.conversations, args.step_tokens, load(folder)[1])
        check_losses(folder)
        measured = compare(folder, args.runs, args.packs)
    table(measured, args)


def table(measured: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    """Print medians, and ratios as medians over the runs."""
    import deepspeed
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    versions = f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, transformers {transformers.__version__}"
    print(
        f"{device}, {versions}, load {os.getloadavg()[0]:.1f}, {args.runs} runs of {args.conversations} conversations"
    )
    print(
        "| | supervised tokens/s | per CPU second | peak memory | thereof training | steps |\n|---|---|---|---|---|---|"
    )
    for name, runs in measured.items():
        medians = {key: median(run[key] for run in runs) for key in runs[0]}
        rates = f"{medians['per_second']:,.1f} | {medians['per_cpu']:,.1f}"
        memory = f"{medians['memory'] / 2**30:.2f} GiB | {medians['added'] / 2**30:.2f} GiB"
        print(f"| {name} | {rates} | {memory} | {medians['steps']:.0f} |")
    pairs = list(zip(measured["ours"], measured["baseline"], strict=True))
    keys = {"speed": "per_second", "per CPU second": "per_cpu", "peak memory": "memory", "thereof training": "added"}
    for what, key in keys.items():
        ratios = [our[key] / their[key] for our, their in pairs]
        print(f"{what}: ours / baseline = {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
