"""Trackers: what is drawn of a line, a missing one is named with its remedy, and each really keeps the curves."""

import importlib.util
import json
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.config.run import RunConfig
from scripts.training.trackers import TrackedRun, check_installed, open_trackers, scalars

LINE = {
    "step": 7,
    "loss": 1.5,
    "grad_norm": None,
    "lr": 0.1,
    "learning_rates": {"projector": 0.1, "vision": 0.01},
    "datasets": {"llava": {"loss": 1.25, "supervised_tokens": 9}},
}


def run(step: int = 0) -> TrackedRun:
    return TrackedRun("house", "demo", "0123", {"learning_rate": 0.1}, step)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def test_numbers_of_a_line_are_drawn_by_name():
    expected = {
        "loss": 1.5,
        "lr": 0.1,
        "loss/llava": 1.25,
        "learning_rate/projector": 0.1,
        "learning_rate/vision": 0.01,
    }
    assert scalars(LINE) == expected
    measured = {"step": 7, "heldout_loss": 2.0, "datasets": {"llava": {"loss": 2.5, "supervised_tokens": 9}}}
    assert scalars(measured) == {"heldout_loss": 2.0, "heldout_loss/llava": 2.5}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_with_the_command(name: str):
    if installed(name):
        check_installed([name])
        return
    with pytest.raises(UserError, match=f"`pip install {name}`"):
        check_installed(["tensorboard", name])


@pytest.mark.skipif(not installed("wandb"), reason="wandb is not installed")
def test_wandb_keeps_a_run_without_a_network(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = RunConfig(model="m", blend="b", trackers=["wandb"])
    (tracker,) = open_trackers(settings, tmp_path, run())
    tracker.log(7, scalars(LINE))
    tracker.close()
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = kept.read_bytes()
    assert b"loss/llava" in content and b"demo-0123" in content


@pytest.mark.skipif(not installed("trackio"), reason="trackio is not installed")
def test_trackio_keeps_a_run_and_continues_it(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    settings = RunConfig(model="m", blend="b", trackers=["trackio"])
    for step in (7, 8):
        (tracker,) = open_trackers(settings, tmp_path, run(step - 1))
        tracker.log(step, scalars(LINE))
        tracker.close()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "trackio").rglob("*") if path.is_file())
    assert b"loss/llava" in kept and json.dumps(1.5).encode() in kept
