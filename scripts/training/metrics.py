"""The record of a run: `metrics.jsonl`, one JSON object per line, and the same as TensorBoard events.

A line of a step has `step` (finished steps, from 1), `epoch`, `loss` (cross-entropy per supervised token of the
global batch), `lr`, `grad_norm` (before clipping), `tokens`, `supervised_tokens`, `padding` (share of computed places
that hold no token), `seconds`, `data_seconds` (waited for data), `tokens_per_second` and `datasets` ({name: {loss,
supervised_tokens}}). A line of a measurement has `step`, `epoch`, `heldout_loss`, `supervised_tokens`, `datasets` and
`seconds`, and no `loss`.

Only the fields that end in `seconds` or `per_second` differ between two executions of a run. A resumed run cuts the
file back to the length that its checkpoint recorded, so that every step stands in it exactly once.
"""

import json
import os
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError

_EVENTS = ("loss", "heldout_loss", "lr", "grad_norm", "padding", "tokens_per_second")


class Metrics:
    """Appends to the record of a run. Only rank 0 has one."""

    def __init__(self, folder: Path, keep_bytes: int, step: int):
        """Open the record in `folder`, cut to its first `keep_bytes`; `step` is the last one that stays.

        Raises:
            UserError: the file is shorter than that.
        """
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "metrics.jsonl"
        path.touch()
        if path.stat().st_size < keep_bytes:
            raise UserError(f"{path} has lost lines that a checkpoint needs; remove {folder} to start the run again")
        os.truncate(path, keep_bytes)
        self._file = open(path, "a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "events"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name in _EVENTS:
            if line.get(name) is not None:
                self._events.add_scalar(name, line[name], line["step"])
        kind = "loss" if "loss" in line else "heldout_loss"
        for dataset, values in line["datasets"].items():
            self._events.add_scalar(f"{kind}/{dataset}", values["loss"], line["step"])

    def sync(self) -> int:
        """Bring everything written to the disk and return the file's length in bytes."""
        os.fsync(self._file.fileno())
        self._events.flush()
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Finish both records."""
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a record."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What a person wants to know of the curves: losses at the start, in the last tenth, and held-out ones."""
    losses = [line["loss"] for line in lines if "loss" in line]
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "mean_loss_of_last_tenth": sum(tail) / len(tail),
        "heldout": [[line["step"], line["heldout_loss"]] for line in lines if "heldout_loss" in line],
    }
