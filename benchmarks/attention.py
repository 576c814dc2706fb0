"""How fast the two-branch attention is, against dense MMCA and against plain causal attention of the same length.

    python -m benchmarks.attention                    # CPU, or the GPU where there is one
    python -m benchmarks.attention --check            # first: every back-end that runs here against the formula
    python -m benchmarks.attention --repetition       # whether the same call gives the same bits again

Forward and backward of one layer's attention, on one conversation whose text lies evenly between its images of 256
tokens; the candidates are described in `attention_candidates.py`. They alternate within one run; the tables give the
median time of each, and as ratios the medians over the repeats. On a GPU the time is that of the device, and the time
of the host, the kernels that ran and the number of launches have tables of their own (`measuring.py`). Peak memory is
what a forward and backward add, on a CPU with each candidate in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from benchmarks.attention_candidates import IMAGE_TOKENS, ON_CPU, ON_GPU, Candidate, candidate, conversation
from benchmarks.measuring import (
    EAGER,
    Sample,
    Timer,
    attention_library,
    kernels,
    peak_memory,
    processor,
    reset_peak_memory,
)
from model.attention import attend
from model.attention_plan import BACKENDS, SWITCHES, AttentionPlan, AttentionSwitches, choose_backend
from model.documents import PAD

CASES = ((1, 600), (4, 600), (8, 600), (8, 2048), (8, 6144), (28, 1024))
"""(images, text tokens): conversations, and long ones of 4k and 8k tokens."""
RATIOS_CPU = (("mmca", "dense"), ("mmca", "causal"), ("dattn", "causal"))
RATIOS_GPU = (
    *(("mmca", "cudnn"), ("mmca, det.", "flash, det."), ("dattn", "cudnn"), ("dattn, det.", "flash, det.")),
    ("mmca, text by cudnn", "cudnn"),
)
AIMS = {
    ("mmca", "cudnn"): {(8, 2048): 1.0, (28, 1024): 3.5, (8, 6144): 0.7},
    ("mmca, det.", "flash, det."): {(8, 2048): 2.0, (28, 1024): 8.0, (8, 6144): 1.5},
}
"""Ratios that the kernel is to reach with 32 heads of 128 in bf16 on an H100, by pair and case."""

_CANNOT_RUN = (RuntimeError, ValueError, ImportError, NotImplementedError)


@dataclass
class Case:
    """What was measured on one conversation, by candidate.

    `launched` are the names of the kernels, on a GPU; `eager` the candidates that could not be captured as a graph;
    `refused` those that cannot run here, with the reason.
    """

    images: int
    text: int
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    launched: dict[str, list[str]] = field(default_factory=dict)
    eager: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def ratio(self, one: str, other: str) -> float | None:
        """How many times as fast `one` is as `other`: the median over the repeats; None if one of them did not run."""
        if one not in self.samples or other not in self.samples:
            return None
        pairs = zip(self.samples[other], self.samples[one], strict=True)
        return median(slow.seconds / fast.seconds for slow, fast in pairs)


def measure(images: int, text: int, args: argparse.Namespace) -> Case:
    """Time all candidates on one conversation, alternating."""
    case, modality = Case(images, text), conversation(images, text)
    calls: dict[str, tuple[Candidate, Timer]] = {}
    for name in names(args):
        if name == "dense" and modality.shape[1] > args.dense_up_to:
            continue
        try:
            call = candidate(name, modality, args)
            with call.settings():
                timer = Timer(call, args.device)
                case.launched[name] = kernels(call) if args.device.type == "cuda" else []
        except _CANNOT_RUN as error:
            case.refused[name] = reason(error)
            continue
        calls[name], case.samples[name] = (call, timer), []
        case.eager += [name] if timer.how == EAGER else []
    for _ in range(args.repeats):
        for name, (call, timer) in calls.items():
            with call.settings():
                case.samples[name].append(timer.sample())
    return case


def must_run(name: str) -> bool:
    """Whether a candidate is ours alone: it runs on every device, and where it does not, something is wrong."""
    return name.startswith(("mmca", "dattn")) and "cudnn" not in name


def reason(error: Exception) -> str:
    """The first line of an error."""
    return next(iter(str(error).strip().splitlines()), repr(error))


def names(args: argparse.Namespace) -> tuple[str, ...]:
    """The candidates for this device."""
    return ON_GPU if args.device.type == "cuda" else ON_CPU


def table(args: argparse.Namespace) -> bool:
    """Print everything as Markdown; returns whether all candidates of ours ran."""
    on_gpu = args.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"{processor()}, {args.threads} threads"
    print(f"{device}; torch {torch.__version__}; {args.dtype}, {args.heads} heads of {args.width}, ", end="")
    print(f"{args.groups} for keys{'; deterministic algorithms only' if args.deterministic else ''};")
    print(f"median of {args.repeats} repeats; forward + backward in ms, peak memory in MiB in brackets\n")
    ratios = RATIOS_GPU if on_gpu else RATIOS_CPU
    print_row(["images", "text", "tokens", *names(args), *(f"{one} to {other}" for one, other in ratios)])
    print_row(["---"] * (3 + len(names(args)) + len(ratios)))
    cases = []
    for images, text in args.cases:
        case = measure(images, text, args)
        cases.append(case)
        cells = [f"{images}", f"{text}", f"{images * IMAGE_TOKENS + text}"]
        for name in names(args):
            if name in case.samples:
                memory = "" if args.no_memory else f" ({measure_memory(images, text, name, args):.0f})"
                cells.append(f"{1000 * median(s.seconds for s in case.samples[name]):.3g}{memory}")
            else:
                cells.append("-")
        print_row([*cells, *(ratio_cell(case, one, other, args) for one, other in ratios)])
    if on_gpu:
        print_host_times(cases, args)
        print_kernels(cases[-1], args)
    for name, why in {name: why for case in cases for name, why in case.refused.items()}.items():
        print(f"\n`{name}` did not run in every case: {why}")
    return not any(must_run(name) for case in cases for name in case.refused)


def ratio_cell(case: Case, one: str, other: str, args: argparse.Namespace) -> str:
    """A ratio as text, with what it is to reach in the shape of the aims."""
    ratio = case.ratio(one, other)
    aim = AIMS.get((one, other), {}).get((case.images, case.text))
    shape = (args.heads, args.groups, args.width, args.dtype)
    aimed = f" (aim {aim})" if aim and args.device.type == "cuda" and shape == (32, 32, 128, torch.bfloat16) else ""
    return "-" if ratio is None else f"{ratio:.2f} x{aimed}"


def print_host_times(cases: Sequence[Case], args: argparse.Namespace) -> None:
    """Print a table of the time that the host needs to queue a forward and a backward."""
    print("\nTime of the host to queue the same, in ms:\n")
    print_row(["images", "text", *names(args)])
    print_row(["---"] * (2 + len(names(args))))
    for case in cases:
        hosts = {name: [s.host for s in samples if s.host is not None] for name, samples in case.samples.items()}
        cells = [f"{1000 * median(hosts[name]):.3g}" if hosts.get(name) else "-" for name in names(args)]
        print_row([f"{case.images}", f"{case.text}", *cells])
    eager = sorted({name for case in cases for name in case.eager})
    print("\nDevice times are those of replayed CUDA graphs", end="")
    print(f", except of {', '.join(eager)}: ordinary calls, which could not be captured." if eager else ".")


def print_kernels(case: Case, args: argparse.Namespace) -> None:
    """Print what each candidate launched in the last case: how often, and which kernels."""
    print(f"\nLaunches of a forward and a backward ({case.images} images, {case.text} tokens of text):\n")
    print_row(["candidate", "launches", "attention by", "kernels"])
    print_row(["---"] * 4)
    for name, launched in case.launched.items():
        counted = {kernel: launched.count(kernel) for kernel in dict.fromkeys(launched)}
        shown = "; ".join(f"{n} x `{kernel[:60]}`" for kernel, n in counted.items())
        ours = name.startswith(("mmca", "dattn"))
        print_row([name, f"{len(launched)}", "see kernels" if ours else attention_library(launched), shown])
    if not any(case.launched.values()):
        print("\nThe profiler saw no kernel here: it may not use the GPU's counters (CUPTI) on this machine.")


def print_row(cells: Sequence[str]) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def measure_memory(images: int, text: int, name: str, args: argparse.Namespace) -> float:
    """MiB that a forward and backward add; on a CPU in a process of its own."""
    if args.device.type == "cuda":
        return added_memory(images, text, name, args)
    command = [sys.executable, "-m", "benchmarks.attention", *sys.argv[1:], "--peak", json.dumps([images, text, name])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def added_memory(images: int, text: int, name: str, args: argparse.Namespace) -> float:
    """MiB that a forward and backward add to the inputs."""
    # A small run first: libraries allocate memory when they are used for the first time.
    small = candidate(name, conversation(1, 64), args)
    with small.settings():
        small()
    call = candidate(name, conversation(images, text), args)
    before = reset_peak_memory(args.device)
    with call.settings():
        call()
    return (peak_memory(args.device) - before) / 2**20


def check(args: argparse.Namespace) -> bool:
    """Compare every back-end that runs here with the formula in float64, forward and backward, on packed documents."""
    text = "tttiiiittttiit|tt|iiiitttttttttt|t"
    modality = torch.tensor([[".ti".index(c) for c in text.replace("|", "")]] * 2)
    ids = torch.tensor([[n for n, piece in enumerate(text.split("|"), start=1) for _ in piece]] * 2)
    modality[1, -1], ids[1, -1] = PAD, 0
    right = True
    for name, switches in SWITCHES.items():
        torch.manual_seed(0)
        shapes = [(2, heads, modality.shape[1], args.width) for heads in (args.heads, args.groups, args.groups)]
        exact = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        attention_plan = AttentionPlan.build(modality, document_ids=ids, **switches, weights=True)
        expected = results(exact, attention_plan, switches, modality)
        for backend in BACKENDS:
            if backend == "auto":
                continue
            tensors = [x.detach().to(args.device, args.dtype).requires_grad_() for x in exact]
            try:
                choose_backend(backend, args.device, args.dtype, args.width)
            except ValueError as refusal:
                print(f"{name:7} {backend:7} {refusal}")
                continue
            attention_plan = AttentionPlan.build(
                modality.to(args.device), document_ids=ids.to(args.device), **switches, backend=backend
            )
            actual = results(tensors, attention_plan, switches, modality)
            errors = [(x.double().cpu() - y).abs().max().item() for x, y in zip(actual, expected, strict=True)]
            verdict = "ok" if max(errors) < (1e-5 if args.dtype == torch.float32 else 5e-2) else "WRONG"
            right = right and verdict == "ok"
            print(f"{name:7} {backend:7} output, dq, dk, dv off by {', '.join(f'{e:.1e}' for e in errors)}  {verdict}")
    return right


def results(
    tensors: list[Tensor], attention_plan: AttentionPlan, switches: AttentionSwitches, modality: Tensor
) -> list[Tensor]:
    """The output, with padding at zero, and the gradients of a weighted sum of it."""
    query, key, value = tensors
    out, _ = attend(None, query, key, value, **switches, attention_plan=attention_plan)
    out = out * (modality != PAD)[:, :, None, None].to(out)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


def repetition(args: argparse.Namespace) -> bool:
    """Run every candidate again and print whether its output and gradients had the same bits each time.

    Returns whether ours ran, and had if they compute with deterministic algorithms.
    """
    same_bits = True
    print_row(["images", "text", "candidate", f"bits of {args.repeats} further runs"])
    print_row(["---"] * 4)
    for images, text in args.cases:
        for name in names(args):
            if name == "dense":
                continue
            try:
                call = candidate(name, conversation(images, text), args)
                with call.settings():
                    first = [tensor.clone() for tensor in call()]
                    again = [call() for _ in range(args.repeats)]
            except _CANNOT_RUN as error:
                print_row([f"{images}", f"{text}", name, f"did not run: {reason(error)}"])
                same_bits = same_bits and not must_run(name)
                continue
            equal = all(torch.equal(x, y) for run in again for x, y in zip(first, run, strict=True))
            print_row([f"{images}", f"{text}", name, "the same" if equal else "DIFFERENT"])
            same_bits = same_bits and (equal or not call.deterministic or not must_run(name))
    return same_bits


def parse_case(text: str) -> tuple[int, int]:
    """Parse `8x2048`: images and tokens of text."""
    images, _, tokens = text.partition("x")
    return int(images), int(tokens)


def parse() -> argparse.Namespace:
    """The command line; what depends on the device has its default here."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    arguments.add_argument("--device", default="cuda" if on_gpu else "cpu", type=torch.device)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, GPU bfloat16")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments.add_argument("--heads", type=int, help="default: 8, GPU 32")
    arguments.add_argument("--groups", type=int, help="heads of keys and values; default: as many as heads")
    arguments.add_argument("--width", type=int, help="width of a head; default: 64, GPU 128")
    arguments.add_argument("--repeats", type=int, default=7, help="timed repeats")
    arguments.add_argument(
        "--cases", type=parse_case, nargs="+", default=CASES, metavar="IMAGESxTEXT", help="such as 8x2048 28x1024"
    )
    arguments.add_argument("--dense-up-to", type=int, default=4096, metavar="T", help="longest conversation for dense")
    arguments.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    arguments.add_argument("--deterministic", action="store_true", help="deterministic algorithms only, everywhere")
    arguments.add_argument("--check", action="store_true", help="compare the back-ends with the formula, and stop")
    arguments.add_argument("--repetition", action="store_true", help="compare the bits of repeated runs, and stop")
    arguments.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    on_gpu = args.device.type == "cuda"
    args.dtype = getattr(torch, args.dtype or ("bfloat16" if on_gpu else "float32"))
    args.heads = args.heads or (32 if on_gpu else 8)
    args.groups = args.groups or args.heads
    args.width = args.width or (128 if on_gpu else 64)
    return args


def main() -> int:
    """Run the program; the exit status is 1 if a check failed or a candidate of ours could not run."""
    args = parse()
    # Read when cuBLAS is first called; without it, deterministic algorithms refuse matrix products on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(args.threads)
    if args.peak:
        images, text, name = args.peak
        print(added_memory(images, text, name, args))
        return 0
    if args.check:
        return not check(args)
    if args.repetition:
        return not repetition(args)
    return not table(args)


if __name__ == "__main__":
    sys.exit(main())
