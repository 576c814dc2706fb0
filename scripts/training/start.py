"""What a run begins with if other runs have trained the model before: their weights, as files in its own state.

A run with `start` begins with the result of another run, which may itself have begun with that of a third. Each of
these runs is a *stage*, and has trained some weights; the run begins with the weights of `models`, changed by one stage
after the other.

    state/<fingerprint>/start/start.json             the stages, the first one first
    state/<fingerprint>/start/0.safetensors, ...     the trained weights of each stage

The files are hard links where the file system allows it, and copies elsewhere. So the result of a run is complete and
can be exported after the run that it started from has been trained again or removed. Its fingerprint holds the hashes
of these files and how they are applied, never the names of the runs.

Adapters of a stage are merged into the weights beside them, unless the next stage trains adapters of the same part,
rank and scale: those continue from them, and replace them (`scripts/inference/stages.py`).
"""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from scripts.common.errors import UserError, damaged
from scripts.common.files import atomic, canonical_json, read_json, sync, text_sha256, write_json
from scripts.common.verified_folder import remembered_sha256
from scripts.config.run import RunConfig

FOLDER = "start"
DESCRIPTION = "start.json"
_VERSION = 1
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of a file system that has no hard links, of one that is another than the target's, and of one too many."""


class Stage(TypedDict):
    """One result of a run that the weights to begin with come from.

    `run`, `which` (final or best), `fingerprint` and `step` name it. `sha256` is that of its trained weights, in which
    adapters have the scale `lora_scale`. `continued`: the parts (language, vision) whose adapters the next stage, or
    the run itself after the last one, continues to train.
    """

    run: str
    which: str
    fingerprint: str
    step: int
    sha256: str
    lora_scale: float
    continued: list[str]


@dataclass(frozen=True)
class Start:
    """The stages before a run, the first one first, and the files of their weights as others keep them."""

    stages: tuple[Stage, ...]
    sources: tuple[Path, ...]

    @property
    def sha256(self) -> str:
        """Hash of the weights that the run begins with: of all files, and how they are applied."""
        applied = [[stage["sha256"], stage["lora_scale"], stage["continued"]] for stage in self.stages]
        return text_sha256(canonical_json(applied))


def find_start(run: Path, settings: RunConfig, model_sha256: str) -> Start:
    """The result of the run in the folder `run` that a run with `settings` begins with, and the stages before it.

    Args:
        run: train/<run>.
        settings: of the run that begins; `start` says which result.
        model_sha256: hash of the manifest of its model, which both runs must share.

    Raises:
        UserError: `run` is not finished, or was trained from another model.
    """
    start = settings.started_from
    if start is None:
        raise ValueError("the settings name no run to start from")
    if not (run / "finished.json").is_file():
        raise UserError(
            f"{run} holds no finished run to start from (there is no finished.json): train {start.run} first"
        )
    finished = read_json(run / "finished.json")
    state = run / finished["state"]
    if read_json(state / "inputs.json")["model"] != model_sha256:
        raise UserError(
            f"{run} was trained from another model than the one given here, which its weights do not fit; train "
            f"{start.run} again, or name the same entry of `models`"
        )
    before = RunConfig.model_validate(read_json(state / "settings.json"))
    earlier = read_stages(state)
    if len(earlier) != len(finished.get("start", {}).get("stages", [])):
        raise damaged(state / FOLDER / DESCRIPTION, "is missing or damaged")
    entry = finished[start.which]
    stage: Stage = {
        "run": finished["run"],
        "which": start.which,
        "fingerprint": finished["fingerprint"],
        "step": entry["step"],
        "sha256": entry["sha256"],
        "lora_scale": before.lora_scale,
        "continued": continued_parts(before, settings),
    }
    sources = [weights_path(state, number) for number in range(len(earlier))]
    return Start((*earlier, stage), (*sources, run / entry["weights"]))


def continued_parts(before: RunConfig, after: RunConfig) -> list[str]:
    """The parts whose adapters a run `after` one with the settings `before` continues to train."""
    if before.lora_scale != after.lora_scale:
        return []
    pairs = {
        "language": [(run.train_language, run.language_lora_rank) for run in (before, after)],
        "vision": [(run.train_vision, run.vision_lora_rank) for run in (before, after)],
    }
    return [part for part, (first, second) in pairs.items() if first == second and first[0] == "lora"]


def weights_path(state: Path, number: int) -> Path:
    """The file below a run's state with the weights of the 0-based stage `number`."""
    return state / FOLDER / f"{number}.safetensors"


def read_stages(state: Path) -> list[Stage]:
    """The stages that the run of `state` began with; none if it began with the weights of `models`.

    Raises:
        UserError: their description is damaged.
    """
    path = state / FOLDER / DESCRIPTION
    if not path.is_file():
        return []
    value = read_json(path)
    if not isinstance(value, dict) or value.get("v") != _VERSION:
        raise damaged(path, f"is not a description of version {_VERSION}")
    return value["stages"]


def start_files(state: Path) -> list[tuple[Path, str]]:
    """The files of weights that the run of `state` began with, and the sha256 of each."""
    return [(weights_path(state, number), stage["sha256"]) for number, stage in enumerate(read_stages(state))]


def is_taken(state: Path, start: Start) -> bool:
    """Whether the state holds all files of `start`, undamaged."""
    if [_applied(stage) for stage in read_stages(state)] != [_applied(stage) for stage in start.stages]:
        return False
    return all(_has_sha256(path, sha256) for path, sha256 in start_files(state))


def take_start(state: Path, start: Start) -> None:
    """Put the files of `start` and their description into the state of a run, where they are missing or damaged.

    Raises:
        UserError: a file that has to be taken is missing or damaged.
    """
    (state / FOLDER).mkdir(parents=True, exist_ok=True)
    for number, (stage, source) in enumerate(zip(start.stages, start.sources, strict=True)):
        target = weights_path(state, number)
        if _has_sha256(target, stage["sha256"]):
            continue
        if not _has_sha256(source, stage["sha256"]):
            raise damaged(source, "is missing or damaged", "a run starts from these weights")
        target.unlink(missing_ok=True)
        _link_or_copy(source, target)
        if not _has_sha256(target, stage["sha256"]):
            raise damaged(target, "was damaged while it was copied")
    sync(state / FOLDER)
    write_json(state / FOLDER / DESCRIPTION, {"v": _VERSION, "stages": list(start.stages)})


def start_change(state: Path, start: Start) -> str:
    """What differs between the weights that the run of `state` began with and those of `start`, in words; "" if none.

    A run that began with the weights of `models` differs in nothing else than its settings, and is not compared.
    """
    taken = read_stages(state)
    if not taken or [_applied(stage) for stage in taken] == [_applied(stage) for stage in start.stages]:
        return ""
    now, then = start.stages[-1], taken[-1]
    if (now["run"], now["which"]) != (then["run"], then["which"]):
        return f"it starts from {now['run']}:{now['which']}, and not from {then['run']}:{then['which']}"
    return f"the {now['which']} weights of {now['run']}, which it starts from, are others"


def summary(state: Path) -> dict[str, Any]:
    """What `finished.json` holds of the stages before the run of `state`: nothing if there are none."""
    stages = read_stages(state)
    if not stages:
        return {}
    names = ("run", "which", "fingerprint", "step", "sha256")
    shown = [{name: stage[name] for name in names} for stage in stages]  # type: ignore[literal-required]
    return {"start": {"sha256": Start(tuple(stages), ()).sha256, "stages": shown}}


def _applied(stage: Stage) -> tuple[str, float, Sequence[str]]:
    return stage["sha256"], stage["lora_scale"], stage["continued"]


def _has_sha256(path: Path, sha256: str) -> bool:
    return path.is_file() and remembered_sha256(path) == sha256


def _link_or_copy(source: Path, target: Path) -> None:
    """Make `target` have the content of `source`, or not exist."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(source, "rb") as reader, atomic(target) as writer:
            shutil.copyfileobj(reader, writer)
