"""The metrics of a run: `metrics.jsonl`, one JSON object per line, also sent to the trackers (see `trackers.py`).

    a step          step (finished steps, from 1), epoch, loss (cross-entropy per supervised token of the global batch),
                    lr (the language model's), learning_rates ({part: rate}), grad_norm (before clipping), tokens,
                    supervised_tokens, padding (share of computed positions that hold no token), datasets ({name: {loss,
                    supervised_tokens}}); with fp16 also loss_scale, and skipped, where grad_norm is null
    its speed       seconds, data_seconds (waited for data), tokens_per_second, supervised_tokens_per_second,
                    flops_per_second (of all ranks), memory_bytes (peak of rank 0 so far: GPU memory, or without a GPU
                    the process's); where the peak of the devices is known also model_flops_utilisation
    an evaluation   step, epoch, heldout_loss, supervised_tokens, datasets, seconds; no loss

Only the fields that end in `seconds`, `per_second`, `bytes` or `utilisation` differ between two executions of a run. A
resumed run truncates the file to the length that its checkpoint recorded, so that every step is in it exactly once.
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.errors import UserError
from scripts.common.files import read_json_lines
from scripts.training.trackers import Tracker, scalars

if TYPE_CHECKING:
    from scripts.training.step_result import StepResult


class Metrics:
    """Appends to the metrics of a run. Only rank 0 has one."""

    def __init__(self, folder: Path, keep_bytes: int, trackers: Sequence[Tracker] = ()) -> None:
        """Open `metrics.jsonl` in `folder`, truncated to its first `keep_bytes`.

        Raises:
            UserError: the file is shorter than that.
        """
        path = folder / "metrics.jsonl"
        path.touch()
        if path.stat().st_size < keep_bytes:
            raise UserError(f"{path} has lost lines that a checkpoint needs; remove {folder} to start the run again")
        os.truncate(path, keep_bytes)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._trackers = list(trackers)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(line["step"], scalars(line))

    def sync(self) -> int:
        """Flush everything to disk and return the file's length in bytes."""
        os.fsync(self._file.fileno())
        for tracker in self._trackers:
            tracker.flush()
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`."""
    return read_json_lines(path)


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The curves in a few numbers: losses at the start, at the end, in the last tenth, and held-out ones."""
    losses = [line["loss"] for line in lines if "loss" in line]
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "mean_loss_of_last_tenth": sum(tail) / len(tail),
        "heldout": [[line["step"], line["heldout_loss"]] for line in lines if "heldout_loss" in line],
    }


def speed_of_step(
    seconds: float, waited: float, tokens: int, supervised: int, flops: float, peak: float | None
) -> dict[str, Any]:
    """The speed of a step as fields of its line; `peak` is that of all devices, in operations per second.

    `waited`: of `seconds`, those for data; `flops`: the operations of all ranks.
    """
    used = {"model_flops_utilisation": round(flops / seconds / peak, 4)} if peak else {}
    return {
        "seconds": round(seconds, 6),
        "data_seconds": round(waited, 6),
        "tokens_per_second": round(tokens / seconds, 1),
        "supervised_tokens_per_second": round(supervised / seconds, 1),
        "flops_per_second": round(flops / seconds),
    } | used


def step_line(result: "StepResult", seconds: float, waited: float, peak: float | None) -> dict[str, Any]:
    """The line of a step, but for its number and its epoch; the other arguments are those of `speed_of_step`."""
    return {
        "loss": result.losses.loss,
        "lr": result.learning_rate,
        "learning_rates": result.learning_rates,
        "grad_norm": None if result.skipped else result.grad_norm,
        "tokens": result.tokens,
        "supervised_tokens": result.losses.supervised,
        "padding": 1 - result.tokens / result.padded_tokens,
        **speed_of_step(seconds, waited, result.tokens, result.losses.supervised, result.flops, peak),
        "memory_bytes": memory_bytes(),
        "datasets": result.losses.by_dataset(),
    }


def step_note(line: dict[str, Any]) -> str:
    """The loss and the speed of a step, as the note beside a progress bar."""
    used = line.get("model_flops_utilisation")
    parts = [f"loss {line['loss']:.4f}", f"{line['tokens_per_second']:,.0f} tokens/s"]
    parts += [] if used is None else [f"{used:.1%} MFU"]
    return ", ".join([*parts, f"{line['data_seconds'] / line['seconds']:.0%} waiting for data"])


def throughput(lines: list[dict[str, Any]], peak: float | None) -> dict[str, Any]:
    """How fast the run was over all its steps; `peak` is that of all its devices, in operations per second.

    Step 1 is left out where there are more: it pays for what is set up on first use.
    """
    steps = [line for line in lines if "loss" in line]
    steps = steps[1:] or steps
    seconds = sum(line["seconds"] for line in steps)
    flops = sum(line["flops_per_second"] * line["seconds"] for line in steps) / seconds
    return {
        "tokens_per_second": round(sum(line["tokens"] for line in steps) / seconds, 1),
        "supervised_tokens_per_second": round(sum(line["supervised_tokens"] for line in steps) / seconds, 1),
        "data_wait": round(sum(line["data_seconds"] for line in steps) / seconds, 4),
        "flops_per_second": round(flops),
        "model_flops_utilisation": round(flops / peak, 4) if peak else None,
        "memory_bytes": max(line["memory_bytes"] for line in steps),
    }


def throughput_line(speed: dict[str, Any]) -> str:
    """What `throughput` returns, as one line of text."""
    utilisation = speed["model_flops_utilisation"]
    used = "" if utilisation is None else f" ({utilisation:.1%} MFU: of the devices' peak)"
    return (
        f"{speed['tokens_per_second']:,.0f} tokens/s, {speed['supervised_tokens_per_second']:,.0f} of them supervised; "
        f"{speed['flops_per_second']:.3g} flops/s{used}; {speed['data_wait']:.1%} of the time waiting for data; at "
        f"most {speed['memory_bytes'] / 2**30:.2f} GiB"
    )


def memory_bytes() -> int:
    """The peak memory of this process so far, in bytes: on its GPU, or without one in the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in kilobytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
