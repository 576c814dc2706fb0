"""A dry run: a few real steps of a run whose results are thrown away, to see time, memory and whether the loss falls.

The steps are those that the run would begin with: its batches, ranks, precision and ZeRO stage. Only the rate differs:
the warm-up is as short as a quarter of the steps and the rate stays at its peak, because the first steps of a long
warm-up would show nothing, and a peak that destroys the model should show here. Nothing is evaluated or saved.
"""

import itertools
import math
import resource
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scripts.common.files import read_json, write_json
from scripts.config.run import RunConfig
from scripts.training.metrics import read_metrics, throughput, throughput_line

if TYPE_CHECKING:
    from scripts.training.trainer import Trainer

_FILE = "dry_run.json"
_FEWEST = 4
_DEVIATIONS = 2.0
# The median of absolute differences of two normal numbers, as a multiple of their standard deviation.
_MEDIAN_DIFFERENCE = 0.954


class Trend(NamedTuple):
    """Mean losses of the first and the last quarter of the steps, and the standard error of their difference.

    `verdict`: what follows, "falls", "rises" or "unclear".
    """

    first: float
    last: float
    error: float
    verdict: str


def shortened(settings: RunConfig, steps: int) -> RunConfig:
    """The settings of a run for a dry run of so many steps: see the module's docstring."""
    changes = {
        "warmup_steps": min(settings.warmup_steps, steps // 4),
        "schedule": "constant",
        "trackers": [],
        "evaluate_every": 0,
    }
    return settings.model_copy(update=changes)


def take_steps(trainer: "Trainer", steps: int) -> bool:
    """Take `steps` steps on this rank and write what they showed (rank 0); return whether all were taken.

    Raises:
        UserError: a check refuses the run, or a loss is not finite.
    """
    import torch
    import torch.distributed as dist

    steps = min(steps, trainer.batches.steps)
    if trainer.rank == 0:
        trainer.send({"steps": steps, "done": 0})
    if trainer.checks:
        trainer.check_before_training(trainer.checks)
    batches = trainer.engine.feed(trainer.batches.load(0, trainer.settings.workers))
    while trainer.done < steps:
        if trainer.take_step(batches).stop:
            break
    # Linux counts in kilobytes, macOS in bytes.
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    device = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
    memory: list[Any] = [None] * trainer.ranks
    dist.all_gather_object(memory, {"device": device, "host": host})
    trainer.close()
    if trainer.rank == 0:
        lines = read_metrics(trainer.state / "metrics.jsonl")
        facts = {
            "planned_steps": trainer.batches.steps,
            "seconds": [line["seconds"] for line in lines],
            "losses": [line["loss"] for line in lines],
            "throughput": throughput(lines, trainer.peak_flops),
            "memory": memory,
            "warnings": trainer.checks.warnings if trainer.checks else [],
        }
        write_json(trainer.state / _FILE, facts)
    return trainer.done == steps


def read_facts(state: Path) -> dict[str, Any] | None:
    """What the steps showed; None if there was none."""
    return read_json(state / _FILE) if (state / _FILE).exists() else None


def trend(losses: Sequence[float]) -> Trend:
    """Whether losses fall: the first quarter of the steps against the last, beside the noise of a step.

    The noise comes from the differences of neighbouring steps, which a trend hardly changes; of these the median,
    because the first steps may fall steeply.
    """
    quarter = max(1, len(losses) // 4)
    first, last = statistics.fmean(losses[:quarter]), statistics.fmean(losses[-quarter:])
    if len(losses) < _FEWEST:
        return Trend(first, last, math.nan, "unclear")
    differences = [abs(after - before) for before, after in itertools.pairwise(losses)]
    error = statistics.median(differences) / _MEDIAN_DIFFERENCE * math.sqrt(2 / quarter)
    if abs(first - last) <= _DEVIATIONS * error:
        return Trend(first, last, error, "unclear")
    return Trend(first, last, error, "falls" if last < first else "rises")


_MEANING = {
    "falls": "it falls",
    "rises": "it RISES: lower the rates, or look at the warnings and the preview of the blend",
    "unclear": "it cannot be said whether it falls: the steps differ by more. Take more of them",
}


def describe(facts: dict[str, Any], settings: RunConfig, name: str) -> str:
    """What a dry run showed, as text."""
    taken = len(facts["losses"])
    # The first step pays for what is set up on first use.
    seconds = statistics.median(facts["seconds"][1:] or facts["seconds"])
    found = trend(facts["losses"])
    hours = seconds * facts["planned_steps"] / 3600
    speed = facts["throughput"]
    rows = [
        f"dry run of {name}: {taken} of {facts['planned_steps']} steps, {settings.ranks} ranks, {settings.precision}",
        f"  time     {seconds:.3g} s per step, {_duration(hours)} for all steps, without evaluations and checkpoints",
        f"  speed    {throughput_line(speed)}",
    ]
    if taken < _FEWEST:
        rows.append(f"  loss     {found.first:.3f} at first, {found.last:.3f} at last: too few steps to see a trend")
    else:
        rows += [
            f"  loss     {found.first:.3f} at first, {found.last:.3f} at last: {_MEANING[found.verdict]}",
            f"           (means of a quarter of the steps; standard error of their difference {found.error:.2g})",
        ]
    for rank, memory in enumerate(facts["memory"]):
        device = "" if memory["device"] is None else f"{memory['device'] / 1e9:.1f} GB of the GPU, "
        rows.append(f"  memory   rank {rank}: at most {device}{memory['host'] / 1e9:.1f} GB of the machine")
    rows += [f"  WARNING  {warning}" for warning in facts["warnings"]]
    return "\n".join(rows)


def _duration(hours: float) -> str:
    """A time that a reader grasps."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} seconds"
    if hours < 2:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
