"""Where a run's curves are shown: TensorBoard, Weights & Biases, trackio. `metrics.jsonl` is written in any case.

A tracker gets the names and numbers of a step, and of the run only its settings. Only rank 0 has one. The last two are
imported where a run uses them, so they need not be installed otherwise. A run that continues repeats the steps
since its checkpoint with the same values: TensorBoard drops the old ones, Weights & Biases the new ones, trackio keeps
both.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scripts.common.errors import UserError
from scripts.config.run import RunConfig

# What to install where a tracker's module is missing.
_MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


@dataclass(frozen=True)
class TrackedRun:
    """How a tracker identifies a run. `step` is the last finished step: values logged after it are void."""

    project: str
    name: str
    fingerprint: str
    settings: Mapping[str, Any]
    step: int


class Tracker(Protocol):
    """A program that shows curves."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of a step."""

    def flush(self) -> None:
        """Write out what was logged, where the tracker does not do so by itself."""

    def close(self) -> None:
        """Finish."""


class TensorBoard:
    """Event files below `folder`/events; see them with `tensorboard --logdir`."""

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "events"), purge_step=run.step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values as scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what is buffered to the event file."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run at wandb.ai, or with WANDB_MODE=offline below `folder`/wandb, to be sent later with `wandb sync`."""

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=run.project,
                name=run.name,
                id=f"{run.name}-{run.fingerprint}",
                resume="allow",
                dir=str(folder),
                config=dict(run.settings),
            )
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"Weights & Biases cannot be used: {str(error).splitlines()[0]}. Log in with `wandb login`, or set "
                "WANDB_MODE=offline, or remove wandb from `trackers`"
            ) from None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send values."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing to do: wandb sends in a separate process."""

    def close(self) -> None:
        """End the run; waits until everything is sent."""
        self._run.finish()


class Trackio:
    """A run in trackio's local database (TRACKIO_DIR); see it with `trackio show`."""

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        import trackio

        self._trackio = trackio
        name = f"{run.name}-{run.fingerprint}"
        trackio.init(project=run.project, name=name, config=dict(run.settings), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values."""
        self._trackio.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing to do: trackio writes at every step."""

    def close(self) -> None:
        """End the run."""
        self._trackio.finish()


_CLASSES: dict[str, Callable[[Path, TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError, with the command to type, unless all of these trackers are installed."""
    missing = [_MODULES[name] for name in names if importlib.util.find_spec(_MODULES[name]) is None]
    if missing:
        raise UserError(
            f"`trackers` names {' and '.join(missing)}, which is not installed: run `pip install {' '.join(missing)}`, "
            "or remove it"
        )


def open_trackers(settings: RunConfig, folder: Path, run: TrackedRun) -> list[Tracker]:
    """Open the trackers that `settings` name, with their files below `folder`.

    Raises:
        UserError: Weights & Biases refuses the connection.
    """
    return [_CLASSES[name](folder, run) for name in settings.trackers]


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The values of a line of `metrics.jsonl` that are shown: its numbers, and those of datasets and parts by path."""
    values = {name: value for name, value in line.items() if isinstance(value, (int, float)) and name != "step"}
    kind = "loss" if "loss" in line else "heldout_loss"
    values |= {f"{kind}/{name}": entry["loss"] for name, entry in line.get("datasets", {}).items()}
    return values | {f"learning_rate/{name}": rate for name, rate in line.get("learning_rates", {}).items()}
