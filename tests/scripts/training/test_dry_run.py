"""Dry runs: nothing stays behind, what is printed, and whether losses fall beside their noise."""

import os
import random
from pathlib import Path

import pytest

from model.processing import VisualChatProcessor
from scripts import train
from scripts.common.errors import UserError
from scripts.common.files import write_json
from scripts.config.run import RunConfig
from scripts.training.dry_run import describe, shortened, trend
from tests.preload import client as preload
from tests.runs import REPOSITORY, SETTINGS, TrainingSetup
from tests.scripts.test_train import poisoned


def noisy(slope: float, steps: int = 20, noise: float = 0.1) -> list[float]:
    chooser = random.Random(1)
    return [5 + slope * step + chooser.gauss(0, noise) for step in range(steps)]


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        (noisy(-0.1), "falls"),
        (noisy(0.1), "rises"),
        (noisy(0.0), "unclear"),
        (noisy(-0.1, noise=2.0), "unclear"),
        ([5.1] * 20, "unclear"),
        ([9.0, 7.0, 5.0, 4.0, *noisy(-0.02, 16, 0.05)], "falls"),
        ([5.0, 1.0], "unclear"),
    ],
)
def test_a_loss_falls_only_beyond_its_noise(losses, verdict):
    assert trend(losses).verdict == verdict


def test_too_few_steps_show_no_trend_and_no_error_of_it():
    rates = ("tokens_per_second", "supervised_tokens_per_second", "flops_per_second", "data_wait", "memory_bytes")
    facts = {"losses": [5.0, 4.9], "seconds": [1.0, 1.0], "planned_steps": 2, "memory": [], "warnings": []}
    facts["throughput"] = dict.fromkeys(rates, 0) | {"model_flops_utilisation": None}
    text = describe(facts, RunConfig(model="m", blend="b"), "r")
    assert "too few steps to see a trend" in text
    assert "nan" not in text


def test_the_peak_rate_is_reached_and_kept():
    found = shortened(RunConfig(**SETTINGS | {"warmup_steps": 500, "trackers": ["wandb"]}), 20)
    assert (found.warmup_steps, found.schedule, found.trackers) == (5, "constant", [])
    assert shortened(RunConfig(**SETTINGS), 20).warmup_steps == SETTINGS["warmup_steps"]


def dry_run(lab: TrainingSetup, out: Path, *flags: str, model: Path | None = None, **changes):
    """Run `--dry-run-steps` with temporary files below `out`'s folder; the finished process."""
    scratch = out.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(scratch)}
    command = [*lab.command(out, model, **changes), *flags]
    return preload.run(command, cwd=lab.root, env=environment, capture_output=True, text=True)


def test_a_dry_run_prints_time_memory_and_whether_the_loss_falls_and_keeps_nothing(lab: TrainingSetup, tmp_path):
    done = dry_run(lab, tmp_path / "out", "--dry-run-steps", "16")
    assert done.returncode == 0, done.stderr
    assert "16 of 26 steps, 2 ranks, fp32" in done.stdout and "it falls" in done.stdout
    assert "s per step" in done.stdout and "tokens/s" in done.stdout and "waiting for data" in done.stdout
    assert "loss before the first step, of" in done.stderr
    assert "rank 0: at most" in done.stdout and "rank 1: at most" in done.stdout
    assert not (tmp_path / "out").exists() and not list((tmp_path / "scratch").iterdir())


def test_a_loss_that_is_not_finite_fails_and_names_the_conversations(lab: TrainingSetup, tmp_path):
    token = VisualChatProcessor.from_pretrained(lab.model).tokenizer("### Question:")["input_ids"][0]
    model = poisoned(lab, token, tmp_path)
    done = dry_run(lab, tmp_path / "out", "--dry-run-steps", "13", model=model, ranks=1)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "loss nan" in done.stderr and "give no finite number: llava" in done.stderr
    assert not (tmp_path / "out").exists() and not list((tmp_path / "scratch").iterdir())


def test_a_start_that_is_not_trained_is_named_and_the_model_is_used(lab: TrainingSetup, tmp_path):
    flags = ["--dry-run-steps", "4", "--start", str(tmp_path / "align")]
    done = dry_run(lab, tmp_path / "out", *flags, start="align", ranks=1, train_projector=False)
    assert done.returncode == 0, done.stderr
    assert "align is not trained yet" in done.stdout and "4 of 26 steps" in done.stdout


def test_several_nodes_are_refused_with_the_way_out(lab: TrainingSetup, tmp_path):
    done = dry_run(lab, tmp_path / "out", "--dry-run-steps", "4", nodes=2, ranks=2)
    assert done.returncode == 1 and '\'{"nodes": 1, "ranks": 1}\'' in done.stderr


def test_the_name_of_a_run_may_be_written_with_an_equals_sign(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--name=first", "--dry-run-steps=2"])
    with pytest.raises(SystemExit):
        train.main()
    assert "--settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        (["crash", "crash"], (RuntimeError, "a rank crashed; the end of its log is above\nTraceback of it")),
        (["error", "crash"], (UserError, "Traceback of it")),
        (["stopped"], (UserError, "killed, perhaps out of memory")),
    ],
)
def test_why_ranks_ended_early_is_shown_and_no_removed_file_is_named(tmp_path, capsys, statuses, error):
    (tmp_path / "log.txt").write_text("the log of the ranks")
    for rank, status in enumerate(statuses):
        end = {"status": status, "message": "Traceback of it", "permanent": False}
        write_json(tmp_path / f"ranks/{rank}.json", end)
    settings = RunConfig(model="m", blend="b", ranks=2)
    with pytest.raises(error[0], match=error[1]) as raised:
        train.without_result(tmp_path, settings, 1)
    assert str(tmp_path) not in str(raised.value)
    assert ("the log of the ranks" in capsys.readouterr().err) == ("error" not in statuses)
