"""The speed and memory of training, against a plain DeepSpeed loop like the original's, or against other trainers.

    python -m benchmarks.train [--conversations 96] [--runs 5] --folder DIR
    python -m benchmarks.train --width 4096 --layers auto --inner 11008 --heads 32      # 7B-shaped, on a GPU
    python -m benchmarks.train --peers --conversations 16 --step-tokens 4096 --layers 2 --runs 3

The same model (a CLIP encoder, a Llama, the paper's projector; projector and embeddings are trained), the same
conversations over JPEGs, ZeRO 2, AdamW, fp32 on a CPU and bf16 on a GPU, one rank or one per GPU. Each candidate trains
once over all conversations, in processes of its own; the runs alternate.

    ours         `MicroBatchDataset` and `TrainingEngine` on a packed blend: what `python -m scripts.train` runs, with
                 its worker processes and on a GPU with deterministic algorithms
    plain loop   a loop around `deepspeed.initialize` like the original's: conversations in random order, padded; JPEGs
                 decoded by the main process; encoder inside the engine, logits at every token, dense MMCA
                 (`train_baseline.py`)
    the peers    other people's trainers (`train_peers.py`)

Where the original is slower without need (it builds its masks in a Python loop), the plain loop is not. Both predict
the same tokens from the same inputs, and a check before the first run compares the loss of the first conversations.

Measured over all steps after the first are supervised tokens per second: by the clock, and by the CPU time of the main
process, which other work on the machine does not slow down (without worker processes; on a GPU only the clock is
meaningful). MFU, the model flops utilisation, divides the operations that the model needs (`scripts/training/flops.py`)
by the time and the peak of the devices; both candidates are counted with the operations of MMCA, not with those that
the dense form computes in addition. `data` is the share of the time in which the training waits for batches. Peak
memory is on a GPU the allocations of PyTorch, on a CPU the resident size of the process, in all and above that before
the first step; on several GPUs it is that of the first.
"""

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measuring import processor as processor_name
from benchmarks.train_baseline import BaselineModel, padded
from benchmarks.train_candidates import CANDIDATES, Options, run_candidate
from benchmarks.train_data import Lengths, Shape, load, load_processor, write_data, write_model

ROOT = Path(__file__).resolve().parents[1]
TRL = ROOT / ".neighbours/trl/bin/python"
PEER_AIMS = (2.5, 0.25)
"""Against the peers: times as many supervised tokens per CPU second, and the share of the memory that training adds."""

Measured = dict[str, list[dict[str, float]]]


class OutOfMemoryError(RuntimeError):
    """A candidate did not fit the memory of its GPU."""


def compare(folder: Path, runs: int, options: Options, names: tuple[str, ...]) -> Measured:
    """Run the candidates `runs` times, alternating; returns their measurements.

    Raises:
        OutOfMemoryError: a GPU's memory did not suffice.
        RuntimeError: a candidate failed; the message ends with its output.
    """
    measured: Measured = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            result = run_alone(command(name, folder, options), options.ranks if name in CANDIDATES else 1)
            measured[name].append(result)
            print(f"{name}: {json.dumps(result)}", file=sys.stderr, flush=True)
    return measured


def command(name: str, folder: Path, options: Options) -> list[str]:
    """The command line of one candidate."""
    given = json.dumps(dataclasses.asdict(options))
    if name in CANDIDATES:
        inside = ["--candidate", name, "--folder", str(folder), "--options", given]
        return [sys.executable, "-m", "benchmarks.train", *inside]
    python = str(TRL) if name == "trl" else sys.executable
    return [python, "-m", "benchmarks.train_peers", name, str(folder), given]


def run_alone(words: list[str], ranks: int) -> dict[str, float]:
    """Run a candidate as `ranks` processes and return what the first prints at its end."""
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
    shared |= {"TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="train-output-") as scratch:
        outputs = [Path(scratch) / f"{rank}.txt" for rank in range(ranks)]
        started = []
        for rank, output in enumerate(outputs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open(output, "w") as file:
                started.append(
                    subprocess.Popen(words, env=os.environ | shared | own, stdout=file, stderr=subprocess.STDOUT)
                )
        try:
            while any(process.poll() is None for process in started):
                if any(process.poll() for process in started):
                    break
                time.sleep(0.05)
        finally:
            for process in started:
                process.kill()
                process.wait()
        failed = [rank for rank, process in enumerate(started) if process.returncode > 0]
        text = outputs[failed[0] if failed else 0].read_text()
        if "OutOfMemoryError" in text:
            raise OutOfMemoryError(text[-2000:])
        if failed or any(process.returncode for process in started):
            raise RuntimeError(f"{' '.join(words[1:5])} failed:\n{text[-3000:]}")
        return json.loads(next(line for line in reversed(text.splitlines()) if line.startswith('{"seconds"')))


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_losses(folder: Path) -> None:
    """Raise RuntimeError unless both candidates compute the same loss for the first conversations, with two layers."""
    from model.template import IGNORE_INDEX
    from scripts.inference.blend_reader import BlendReader

    reader = BlendReader(folder / "baseline", folder)
    model, processor = load(folder, layers=2)
    inputs = {name: value.to(model.device) for name, value in padded(reader, processor, range(2)).items()}
    with torch.no_grad():
        losses, _ = model.token_losses(**inputs)
        expected = losses.mean()
        actual = BaselineModel(model)(**inputs)
    assert losses.numel() == int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
    if abs(float(expected - actual)) > (0.05 if torch.cuda.is_available() else 1e-4):
        raise RuntimeError(f"the candidates compute different losses: {expected} and {actual}")


def layers_that_fit(shape: Shape, options: Options, lengths: Lengths, sequence: int, memory: float) -> int:
    """How many layers of this shape both candidates can train in so many bytes of a GPU; at most 32, at least 1.

    Per layer: the weights in bf16; about ten activations of a token as wide as the model and four as wide as the
    feed-forward layer; and six tensors of scores in the plain loop, which needs the most. Beside the layers: both
    tables, and the fp32 copy, moments and gradient of the one that is trained.
    """
    heads, inner = shape.heads or shape.width // 64, shape.inner or int(shape.width * 2.75)
    weights = 2 * (4 * shape.width**2 + 3 * shape.width * inner)
    token = 2 * (10 * shape.width + 4 * inner)
    scores = 2 * 6 * heads * options.rows * lengths.longest**2
    layer = weights + max(token * options.rows * lengths.longest + scores, token * options.packs * sequence)
    beside = shape.vocabulary * shape.width * (2 + 2 + 2 + 16) + 4 * 2**30
    return max(1, min(32, int((0.9 * memory - beside) / layer)))


def train_all(folder: Path, args: argparse.Namespace, options: Options) -> tuple[Measured, Shape, Lengths]:
    """Write model and data, check that the candidates agree, and run them; with fewer layers if memory lacks."""
    shape = shape_of(args)
    write_model(folder, shape)
    lengths = write_data(folder, args.conversations, args.step_tokens, load_processor(folder), args.sequence)
    if args.layers == "auto":
        memory = torch.cuda.get_device_properties(0).total_memory
        shape = dataclasses.replace(shape, layers=layers_that_fit(shape, options, lengths, args.sequence, memory))
        write_model(folder, shape)
    names: tuple[str, ...] = tuple(CANDIDATES)
    check_losses(folder)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if args.peers:
        from benchmarks.train_peers import PEERS, check_tokens

        check_tokens(folder)
        names += tuple(name for name in PEERS if name != "trl" or TRL.exists())
        if not TRL.exists():
            print("trl is left out: `make .neighbours/trl/.ready` makes its environment", file=sys.stderr)
    while True:
        try:
            return compare(folder, args.runs, options, names), shape, lengths
        except OutOfMemoryError:
            if args.layers != "auto" or shape.layers == 1:
                raise
            shape = dataclasses.replace(shape, layers=max(1, shape.layers * 3 // 4))
            print(f"out of memory: again with {shape.layers} layers", file=sys.stderr, flush=True)
            write_model(folder, shape)


def shape_of(args: argparse.Namespace) -> Shape:
    """The sizes that the command line gives; one layer where their number is to be found."""
    sizes = {field.name: getattr(args, field.name) for field in dataclasses.fields(Shape)}
    return Shape(**sizes | {"layers": 1 if args.layers == "auto" else int(args.layers)})


def table(measured: Measured, shape: Shape, lengths: Lengths, options: Options, args: argparse.Namespace) -> None:
    """Print medians, and ratios as medians over the runs."""
    import deepspeed
    import transformers

    from scripts.training.flops import peak_flops

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({processor_name()})"
    versions = f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, transformers {transformers.__version__}"
    print(f"{device} x {options.ranks}, {versions}, load {os.getloadavg()[0]:.1f}; {shape}; {options}; ", end="")
    print(f"{args.runs} runs of {args.conversations} conversations ({lengths.labels} supervised tokens), ", end="")
    print(f"packs of {args.sequence}\n")
    print("| | supervised tokens/s | per CPU second | MFU | data | peak memory | thereof training | steps |")
    print("|---|---|---|---|---|---|---|---|")
    peak = peak_flops(options.ranks)
    for name, runs in measured.items():
        value = {key: median(rate(run, key, peak) for run in runs) for key in ("seconds", "cpu_seconds", "flops")}
        used = f"{value['flops']:.1%}" if peak and name in CANDIDATES else "-"
        waiting = median(run["data_seconds"] / run["seconds"] for run in runs)
        cells = [name, f"{value['seconds']:,.1f}", f"{value['cpu_seconds']:,.1f}", used]
        cells.append(f"{waiting:.1%}" if name in CANDIDATES else "-")
        cells += [f"{median(run[key] for run in runs) / 2**30:.2f} GiB" for key in ("memory", "added")]
        print(f"| {' | '.join(cells)} | {median(run['steps'] for run in runs):.0f} |")
    print()
    for name in list(measured)[1:]:
        print_ratios(measured["ours"], measured[name], name, aims=PEER_AIMS if name not in CANDIDATES else None)
    if torch.cuda.is_available():
        print("\nAims with layers of a 7B decoder: 40 % MFU, twice the plain loop, a third of its peak memory")


def rate(run: dict[str, float], key: str, peak: float | None) -> float:
    """Supervised tokens per `key` (seconds or cpu_seconds), or of the flops the share of the peak."""
    if key == "flops":
        return run["flops"] / run["seconds"] / peak if peak else 0.0
    return run["labels"] / run[key]


def print_ratios(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], name: str, aims: tuple[float, float] | None
) -> None:
    """Print how ours compares with another candidate."""
    pairs = list(zip(ours, theirs, strict=True))
    for what, key in (("supervised tokens/s", "seconds"), ("per CPU second", "cpu_seconds")):
        ratios = [rate(our, key, None) / rate(their, key, None) for our, their in pairs]
        aim = f"; aim: at least {aims[0]}" if aims and key == "cpu_seconds" else ""
        print(f"{what}: ours / {name} = {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}){aim}  ")
    for what, key in (("peak memory", "memory"), ("thereof training", "added")):
        ratios = [our[key] / their[key] for our, their in pairs]
        aim = f"; aim: at most {aims[1]}" if aims and key == "added" else ""
        print(f"{what}: ours / {name} = {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}){aim}  ")


def parse() -> argparse.Namespace:
    """The command line; what depends on the device has its default here."""
    on_gpu = torch.cuda.is_available()
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, default=96)
    arguments.add_argument("--step-tokens", type=int, default=8192, help="approximate number of tokens in a step")
    arguments.add_argument("--sequence", type=int, default=4096 if on_gpu else 2048, help="tokens of a pack")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--packs", type=int, default=1, help="packs in a micro-batch of ours")
    arguments.add_argument(
        "--rows", type=int, default=1 if on_gpu else 4, help="conversations in a micro-batch of the others"
    )
    arguments.add_argument("--workers", type=int, default=4 if on_gpu else 0, help="processes of our loader, per rank")
    arguments.add_argument("--ranks", type=int, default=max(1, torch.cuda.device_count()), help="default: one per GPU")
    arguments.add_argument("--width", type=int, default=256)
    arguments.add_argument("--layers", default="4", help="number of layers, or auto: as many as fit the GPU, up to 32")
    arguments.add_argument("--heads", type=int, default=0, help="default: one per 64 of the width")
    arguments.add_argument("--inner", type=int, default=0, help="width of feed-forward layers; default: 2.75 x width")
    arguments.add_argument("--vocabulary", type=int, default=32000)
    arguments.add_argument("--vision-width", type=int, default=128)
    arguments.add_argument("--vision-layers", type=int, default=2)
    arguments.add_argument("--any-algorithms", action="store_true", help="ours with algorithms that need not repeat")
    arguments.add_argument("--peers", action="store_true", help="also the peers (CPU)")
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to work")
    arguments.add_argument("--candidate", choices=list(CANDIDATES), help=argparse.SUPPRESS)
    arguments.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.layers == "auto" and not on_gpu:
        arguments.error("--layers auto asks how many layers fit a GPU, and there is none: give a number")
    if args.peers and args.ranks > 1:
        arguments.error("--peers compares one rank: give --ranks 1")
    return args


def main() -> None:
    """Run the benchmark and print its table."""
    args = parse()
    if args.candidate:
        run_candidate(args.candidate, args.folder, Options(**args.options))
        return
    fields: dict[str, Any] = {name: getattr(args, name) for name in ("rows", "packs", "workers", "ranks")}
    options = Options(**fields, deterministic=not args.any_algorithms)
    with tempfile.TemporaryDirectory(prefix="train-", dir=args.folder) as scratch:
        measured, shape, lengths = train_all(Path(scratch), args, options)
    table(measured, shape, lengths, options, args)


if __name__ == "__main__":
    main()
