"""Portable checkpoints: the state of a run as plain tensors by parameter name, on disk whole or not at all.

A checkpoint holds, for every trained parameter, the fp32 weight and the optimizer's state (AdamW's two moments),
unsharded, in one safetensors file, under the names `weight/<parameter>`, `exp_avg/<parameter>` and so on.
`checkpoint.json` beside it holds the step and what belongs to it: updates made and fp16's loss scale, plans and the
position in them, the length of the metrics file, the best weights so far and how long ago that was, and whether an
evaluation on held-out data is pending. Nothing in it depends on the number of ranks, the ZeRO stage, what is
offloaded or DeepSpeed's version, so a run may continue with others. Neither random state nor a schedule's is kept,
because none exists: the plan holds every draw, dropout is seeded anew from (seed, step, rank), and rates are a function
of the step.

    state/<fingerprint>/checkpoints/step-00000200/{state.safetensors, checkpoint.json}
    state/<fingerprint>/weights/step-00000200.safetensors          the trained weights alone: best and final

A checkpoint is written to a hidden folder, synced and renamed. `kill -9` at any moment leaves the earlier ones intact,
and so does a full disk.
"""

import errno
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json, sync, write_json
from scripts.common.tensors import read_tensors, write_tensors

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""The error numbers of a full disk and of a full quota."""

_VERSION = 3


class Checkpoints:
    """The checkpoints of one run, in one folder. Only one process may write."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Open `folder`, which is made if need be; `keep` checkpoints remain after each `save`."""
        self.folder, self.keep = Path(folder), keep
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], log: Callable[[str], None]) -> None:
        """Write the checkpoint of `step` (finished steps) with `facts` (JSON values), then remove the oldest ones.

        On a full disk the older checkpoints are removed first, all but the newest; `log` gets a message about it.

        Raises:
            OSError: the disk is still full, or fails; the newest whole checkpoint is still there.
        """
        try:
            self._write(step, tensors, facts)
        except OSError as error:
            shutil.rmtree(self._draft(step), ignore_errors=True)
            older = self._all()[:-1]
            if error.errno not in DISK_FULL or not older:
                raise
            log(
                f"the disk is full: removing {', '.join(path.name for path in older)} for the checkpoint of step {step}"
            )
            for path in older:
                shutil.rmtree(path)
            try:
                self._write(step, tensors, facts)
            except OSError:
                shutil.rmtree(self._draft(step), ignore_errors=True)
                raise
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        target, draft = self._path(step), self._draft(step)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        write_tensors(draft / "state.safetensors", tensors)
        sha256 = file_sha256(draft / "state.safetensors")
        write_json(draft / "checkpoint.json", {"v": _VERSION, "step": step, "sha256": sha256} | facts)
        sync(draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        sync(self.folder)

    def newest(self, log: Callable[[str], None]) -> dict[str, Any] | None:
        """Return the facts of the newest whole checkpoint, or None if there is none.

        A damaged one is reported through `log` and removed, and the one before it is used.
        """
        for leftover in self.folder.glob(".*"):
            shutil.rmtree(leftover)
        for path in reversed(self._all()):
            problem = _damage(path)
            if problem is None:
                return read_json(path / "checkpoint.json")
            log(f"checkpoint {path.name} is damaged ({problem}); continuing from the one before it")
            shutil.rmtree(path)
        return None

    def load(self, step: int) -> dict[str, Tensor]:
        """Return the tensors of the checkpoint of `step`."""
        return read_tensors(self._path(step) / "state.safetensors")

    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, oldest first."""
        return [int(path.name.removeprefix("step-")) for path in self._all()]

    def facts(self) -> Iterable[dict[str, Any]]:
        """Yield the facts of every checkpoint, oldest first."""
        return (read_json(path / "checkpoint.json") for path in self._all())

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _draft(self, step: int) -> Path:
        return self.folder / f".{self._path(step).name}"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        facts = read_json(path / "checkpoint.json")
        if facts["v"] != _VERSION:
            return f"its format is version {facts['v']}, this program reads {_VERSION}"
        if file_sha256(path / "state.safetensors") != facts["sha256"]:
            return "its tensors do not have the recorded sha256"
        best = facts["best"]
        # An earlier checkpoint from before the lost best weights makes them again.
        if best and file_sha256(path.parents[1] / best["weights"]) != best["sha256"]:
            return "the best weights it names do not have the recorded sha256"
    except (UserError, OSError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def weights_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, by parameter name, among the tensors of a checkpoint."""
    return {name.removeprefix("weight/"): tensor for name, tensor in tensors.items() if name.startswith("weight/")}


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights` (fp32, by parameter name) into `model`, casting to the type of its parameters.

    Raises:
        UserError: the model has no parameter of a name, or one of another shape.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            if name not in parameters or parameters[name].shape != value.shape:
                expected = tuple(parameters[name].shape) if name in parameters else "absent"
                raise UserError(
                    f"the trained weights do not fit the model: {name} is {tuple(value.shape)} in the weights and "
                    f"{expected} in the model"
                )
            parameters[name].copy_(value)
