"""How fast the two-branch attention is, against dense MMCA and against plain causal attention of the same length.

    python -m benchmarks.attention                    # CPU, or the GPU where there is one
    python -m benchmarks.attention --check            # first: every back-end that runs here against the formula

Forward and backward of one layer's attention, on one conversation whose text lies evenly between its images of 256
tokens. The candidates alternate within one run; the table gives the median time of each, and as ratios the medians over
the repeats. Peak memory is what a forward and backward add, on a CPU with each candidate in a process of its own.

    dense    two softmaxes over T x T scores with masks, as in the paper's formula; the masks are not timed
    causal   scaled_dot_product_attention(is_causal=True), which on a GPU in half precision is flash attention
    ours     `attend` as the model calls it, for 'mmca' and 'dattn', with the back-end that the model would choose
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import attend
from model.attention_plan import SWITCHES, AttentionPlan, AttentionSwitches
from model.documents import IMAGE, PAD, TEXT
from model.masks import Masks, attend_with_weights
from model.varlen import VarlenFlash
from scripts.training.worker import enable_determinism

IMAGE_TOKENS = 256
CASES = ((1, 600), (4, 600), (8, 600), (8, 2048), (8, 6144), (28, 1024))
"""(images, text tokens): conversations, and long ones of 4k and 8k tokens."""
NAMES = ("dense", "causal", "mmca", "dattn")


def conversation(images: int, text: int) -> Tensor:
    """The modality (1, T) of a conversation: some text, an image, some text, the next image, ..."""
    share = text // (images + 1)
    modality = ([TEXT] * share + [IMAGE] * IMAGE_TOKENS) * images
    return torch.tensor([modality + [TEXT] * (text - share * images)])


def inputs(modality: Tensor, args: argparse.Namespace) -> list[Tensor]:
    """Random query, key and value that require gradients."""
    torch.manual_seed(0)
    shapes = [(1, heads, modality.shape[1], args.width) for heads in (args.heads, args.groups, args.groups)]
    return [torch.randn(s, device=args.device, dtype=args.dtype, requires_grad=True) for s in shapes]


def candidate(name: str, modality: Tensor, args: argparse.Namespace) -> Callable[..., Tensor]:
    """An attention as a function of query, key and value."""
    if name in SWITCHES and name != "causal":
        # The tokens are in the order in which the model passes them to its decoder.
        attention_plan = AttentionPlan.build(
            modality.to(args.device), **SWITCHES[name], dtype=args.dtype, width=args.width, unpad=True
        )
        return lambda q, k, v: attend(None, q, k, v, **SWITCHES[name], attention_plan=attention_plan)[0]
    if name == "causal":
        gqa = args.groups != args.heads
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    masks = Masks.build(modality, modality.shape[1])
    masks = Masks(*(getattr(masks, field).to(args.device) for field in ("everything", "text", "image", "no_image")))
    non_text = (modality != TEXT)[:, :, None, None].to(args.device)
    return lambda q, k, v: attend_with_weights(q, k, v, masks, non_text, **SWITCHES["mmca"], dropout=0.0, scaling=None)[
        0
    ]


def run(function: Callable[..., Tensor], tensors: list[Tensor]) -> float:
    """Seconds of a forward and a backward."""
    for tensor in tensors:
        tensor.grad = None
    synchronise(tensors[0].device)
    begin = time.perf_counter()
    function(*tensors).sum().backward()
    synchronise(tensors[0].device)
    return time.perf_counter() - begin


def synchronise(device: torch.device) -> None:
    """Wait for the work of a GPU, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(images: int, text: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every candidate in every repeat, after one that is not timed."""
    modality = conversation(images, text)
    names = [name for name in NAMES if name != "dense" or modality.shape[1] <= args.dense_up_to]
    tensors, functions = inputs(modality, args), {name: candidate(name, modality, args) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(args.repeats + 1):
        for name, function in functions.items():
            taken = run(function, tensors)
            if repeat > 0:  # the first one warms up
                seconds[name].append(taken)
    return seconds


def peak_memory(images: int, text: int, name: str, args: argparse.Namespace) -> float:
    """MiB that a forward and backward add to the inputs; on a CPU in a process that did nothing else."""
    modality = conversation(images, text)
    tensors, function = inputs(modality, args), candidate(name, modality, args)
    # A small run first: libraries allocate memory when they are used for the first time.
    small = conversation(1, 64)
    run(candidate(name, small, args), inputs(small, args))
    if args.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(function, tensors)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak to the present use
    before = resident("VmRSS")
    run(function, tensors)
    return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """Memory of this process in KiB: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def check(args: argparse.Namespace) -> None:
    """Compare every back-end that runs here with the formula in float64, forward and backward, on packed documents."""
    text = "tttiiiittttiit|tt|iiiitttttttttt|t"
    modality = torch.tensor([[".ti".index(c) for c in text.replace("|", "")]] * 2)
    ids = torch.tensor([[n for n, piece in enumerate(text.split("|"), start=1) for _ in piece]] * 2)
    modality[1, -1], ids[1, -1] = PAD, 0
    backends = ["sdpa"]
    if VarlenFlash.is_supported(args.device, args.dtype, args.width, 0.0):
        backends.append("varlen")
    for name, switches in SWITCHES.items():
        torch.manual_seed(0)
        shapes = [(2, heads, modality.shape[1], args.width) for heads in (args.heads, args.groups, args.groups)]
        exact = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        attention_plan = AttentionPlan.build(modality, document_ids=ids, **switches, weights=True)
        expected = results(exact, attention_plan, switches, modality)
        for backend in backends:
            tensors = [x.detach().to(args.device, args.dtype).requires_grad_() for x in exact]
            attention_plan = AttentionPlan.build(
                modality.to(args.device),
                document_ids=ids.to(args.device),
                **switches,
                backend=backend,
                dtype=args.dtype,
                width=args.width,
            )
            actual = results(tensors, attention_plan, switches, modality)
            errors = [(x.double().cpu() - y).abs().max().item() for x, y in zip(actual, expected, strict=True)]
            limit = 1e-5 if args.dtype == torch.float32 else 5e-2
            verdict = "ok" if max(errors) < limit else "WRONG"
            print(f"{name:7} {backend:7} output, dq, dk, dv off by {', '.join(f'{e:.1e}' for e in errors)}  {verdict}")


def results(
    tensors: list[Tensor], attention_plan: AttentionPlan, switches: AttentionSwitches, modality: Tensor
) -> list[Tensor]:
    """The output, with padding at zero, and the gradients of a weighted sum of it."""
    query, key, value = tensors
    out, _ = attend(None, query, key, value, **switches, attention_plan=attention_plan)
    out = out * (modality != PAD)[:, :, None, None].to(out)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), tensors)]


def table(args: argparse.Namespace) -> None:
    """Print everything as Markdown."""
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else f"{processor()}, {args.threads} threads"
    print(f"{device}; torch {torch.__version__}; {args.dtype}, {args.heads} heads of {args.width}, ", end="")
    keys = f"{args.groups} for keys{', deterministic' if args.deterministic else ''}"
    print(f"{keys}; median of {args.repeats} repeats; forward + backward in ms, peak memory in MiB\n")
    print("| images | text | tokens |", " | ".join(NAMES), "| mmca to dense | mmca to causal | dattn to causal |")
    print("|" + "---|" * (len(NAMES) + 6))
    for images, text in CASES:
        seconds = measure(images, text, args)
        cells = [f"{images}", f"{text}", f"{images * IMAGE_TOKENS + text}"]
        for name in NAMES:
            if name in seconds:
                memory = "" if args.no_memory else f" ({measure_memory(images, text, name, args):.0f})"
                cells.append(f"{1000 * median(seconds[name]):.1f}{memory}")
            else:
                cells.append("-")
        for one, other in (("mmca", "dense"), ("mmca", "causal"), ("dattn", "causal")):
            pairs = zip(seconds[other], seconds[one], strict=True) if other in seconds else ()
            ratios = [slow / fast for slow, fast in pairs]
            cells.append(f"{median(ratios):.2f} x" if ratios else "-")
        print("|", " | ".join(cells), "|", flush=True)


def measure_memory(images: int, text: int, name: str, args: argparse.Namespace) -> float:
    """`peak_memory`, on a CPU in a process of its own."""
    if args.device.type == "cuda":
        return peak_memory(images, text, name, args)
    command = [sys.executable, "-m", "benchmarks.attention", *sys.argv[1:], "--peak", json.dumps([images, text, name])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def processor() -> str:
    """The name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    arguments.add_argument("--device", default="cuda" if on_gpu else "cpu", type=torch.device)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32, GPU bfloat16")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments.add_argument("--heads", type=int, default=8)
    arguments.add_argument("--groups", type=int, default=8, help="heads of keys and values")
    arguments.add_argument("--width", type=int, default=64, help="width of a head")
    arguments.add_argument("--repeats", type=int, default=7, help="timed repeats")
    arguments.add_argument("--dense-up-to", type=int, default=4096, metavar="T", help="longest conversation for dense")
    arguments.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    arguments.add_argument(
        "--deterministic", action="store_true", help="deterministic algorithms, as in training (GPU)"
    )
    arguments.add_argument("--check", action="store_true", help="compare the back-ends with the formula, and stop")
    arguments.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    args.dtype = getattr(torch, args.dtype or ("bfloat16" if args.device.type == "cuda" else "float32"))
    torch.set_num_threads(args.threads)
    if args.deterministic:
        enable_determinism()
    if args.peak:
        images, text, name = args.peak
        print(peak_memory(images, text, name, args))
    elif args.check:
        check(args)
    else:
        table(args)


if __name__ == "__main__":
    main()
