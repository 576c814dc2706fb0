"""How fast training is and how much memory it takes, against a plain DeepSpeed loop in the original's manner.

    python -m benchmarks.train [--conversations 96] [--runs 5] --folder DIR

The same small model (a CLIP encoder, a Llama, the paper's projector; projector and embeddings are trained), the same
conversations over JPEGs, one rank, ZeRO 2, AdamW, fp32 on a CPU and bf16 on a GPU. Each contestant trains once over all
conversations, in a process of its own; they take turns.

    ours    `MicroBatchDataset` and `TrainingEngine` on a packed blend: what `python -m scripts.train` runs, on a GPU with algorithms
            that repeat their results
    plain   a loop around `deepspeed.initialize` as the original has it: conversations in random order, padded; JPEGs
            decoded by the main process; encoder inside the engine, logits everywhere, dense MMCA (`train_plain.py`)

Where the original would be slower without need (it builds its masks in a Python loop), `plain` is not. Both predict the
same tokens from the same inputs, and a check before the first turn compares the loss of the first conversations.

What counts is supervised tokens per second over all steps after the first: of the clock, and of this process's one CPU
thread, which other work on the machine does not slow down (on a GPU only the clock means something); and peak memory:
on a GPU what PyTorch has allocated, on a CPU the process's largest resident size, whole and above what it was before
the first step.
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
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.train_baseline import BaselineModel, padded
from benchmarks.train_data import load, write_data, write_model

ROOT = Path(__file__).resolve().parents[1]
MICRO = 4


# ---- the contestants: each yields None when it is ready, then what each step was like


def settings(micro_batch: int) -> Any:
    """What both train, and how."""
    from scripts.config.run import RunConfig

    options = {"micro_batch": micro_batch, "precision": "bf16" if torch.cuda.is_available() else "fp32"}
    return RunConfig(model="m", blend="b", ranks=1, zero=2, schedule="constant", **options)


def ours(folder: Path, packs: int) -> Iterator[dict[str, float] | None]:
    """What `scripts.train` runs: packs, and the engine."""
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
    yield None
    for step in range(batches.steps):
        begin, cpu = time.perf_counter(), time.process_time()
        result = engine.step(step, [next(feed) for _ in range(batches.accumulation)])
        yield taken(begin, cpu, result.measured.supervised, result.measured.loss)


def plain(folder: Path, packs: int) -> Iterator[dict[str, float] | None]:
    """The loop of the original's manner."""
    import deepspeed

    from scripts.inference.blend_reader import BlendReader
    from scripts.training.deepspeed_config import deepspeed_config

    run = settings(MICRO)
    reader = BlendReader(folder / "plain", folder)
    model, processor = load(folder)
    model = BaselineModel(model, folder)
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
    place = 0
    yield None
    while place < len(reader):
        begin, cpu, labels, losses = time.perf_counter(), time.process_time(), 0, 0.0
        for _ in range(micros):
            rows = range(place, min(place + MICRO, len(reader)))
            place = rows.stop
            if not rows:
                break
            inputs = {name: value.to(engine.device) for name, value in padded(reader, processor, rows).items()}
            loss = engine(**inputs)
            engine.backward(loss)
            engine.step()
            count = int((inputs["labels"] >= 0).sum())
            labels, losses = labels + count, losses + float(loss) * count
        yield taken(begin, cpu, labels, losses / labels)


def taken(begin: float, cpu: float, labels: int, loss: float) -> dict[str, float]:
    """What a step was like that began at `begin` of the clock and `cpu` of the process's time."""
    spent = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
    return spent | {"labels": labels, "loss": loss}


# ---- the race


def contestant(name: str, folder: Path, packs: int) -> None:
    """Run one contestant in this process and print what it was like as JSON."""
    from scripts.training.worker import start_distributed

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    start_distributed()
    feed = {"ours": ours, "plain": plain}[name](folder, packs)
    next(feed)
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else resident()
    steps = list(feed)
    timed = steps[1:]
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    labels = sum(step["labels"] for step in timed)
    facts = {
        f"per_{of}": labels / sum(step[key] for step in timed) for of, key in (("second", "seconds"), ("cpu", "cpu"))
    }
    facts |= {"memory": memory, "added": memory - before, "steps": len(steps)}
    facts |= {"first_loss": steps[0]["loss"], "last_loss": steps[-1]["loss"]}
    print(json.dumps(facts | {"labels": sum(step["labels"] for step in steps)}))


def resident() -> int:
    """Bytes of the machine's memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def race(folder: Path, runs: int, packs: int) -> dict[str, list[dict[str, float]]]:
    """Let the contestants take turns."""
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    found: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for turn in range(runs):
        for name, results in found.items():
            port = {"MASTER_PORT": str(29600 + 2 * turn + (name == "plain"))}
            threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "benchmarks.train", "--contestant", name, "--folder", str(folder)]
            command += ["--packs", str(packs)]
            done = subprocess.run(command, env=os.environ | variables | port | threads, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {results[-1]}", file=sys.stderr)
    return found


def check_losses(folder: Path) -> None:
    """Refuse to compare contestants that do not compute the same: the loss of the first conversations must agree."""
    from model.template import IGNORE_INDEX
    from scripts.inference.blend_reader import BlendReader

    reader = BlendReader(folder / "plain", folder)
    model, processor = load(folder)
    inputs = padded(reader, processor, range(2))
    with torch.no_grad():
        losses, _ = model.token_losses(**inputs)
        expected = losses.mean()
        found = BaselineModel(model, folder)(**inputs)
    assert losses.numel() == int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
    if abs(float(expected - found)) > (0.05 if torch.cuda.is_available() else 1e-4):
        raise RuntimeError(f"the contestants disagree about a loss: {expected} and {found}")


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, default=96)
    arguments.add_argument("--step-tokens", type=int, default=8192, help="tokens of a step, about")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--packs", type=int, default=1, help="packs that ours computes at once")
    arguments.add_argument("--width", type=int, default=256)
    arguments.add_argument("--layers", type=int, default=4)
    arguments.add_argument("--vocabulary", type=int, default=32000)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to work")
    arguments.add_argument("--contestant", choices=["ours", "plain"], help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.contestant:
        contestant(args.contestant, args.folder, args.packs)
        return
    with tempfile.TemporaryDirectory(prefix="train-", dir=args.folder) as scratch:
        folder = Path(scratch)
        write_model(folder, args)
        write_data(folder, args.conversations, args.step_tokens, load(folder)[1])
        check_losses(folder)
        found = race(folder, args.runs, args.packs)
    table(found, args)


def table(found: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    """Print medians, and ratios as medians over the turns."""
    import deepspeed
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    versions = f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, transformers {transformers.__version__}"
    print(
        f"{device}, {versions}, load {os.getloadavg()[0]:.1f}, {args.runs} runs of {args.conversations} conversations"
    )
    print(
        "| | supervised tokens/s | per CPU second | peak memory | of it training | steps |\n|---|---|---|---|---|---|"
    )
    for name, runs in found.items():
        middle = SimpleNamespace(**{key: median(run[key] for run in runs) for key in runs[0]})
        gib = (middle.memory / 2**30, middle.added / 2**30)
        rates = f"{middle.per_second:,.1f} | {middle.per_cpu:,.1f}"
        print(f"| {name} | {rates} | {gib[0]:.2f} GiB | {gib[1]:.2f} GiB | {middle.steps:.0f} |")
    pairs = list(zip(found["ours"], found["plain"], strict=True))
    keys = {"speed": "per_second", "per CPU second": "per_cpu", "peak memory": "memory", "of it training": "added"}
    for what, key in keys.items():
        ratios = [our[key] / their[key] for our, their in pairs]
        print(f"{what}: ours / plain = {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
