"""The training loop: a run that is stopped anywhere continues exactly; no time left; early stopping."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.preload import client as preload
from tests.runs import REPOSITORY, STEPS, TrainingSetup, metrics, state_of


@pytest.fixture(scope="module")
def runs(lab: TrainingSetup, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.scripts.training.run_interrupted", str(lab.root), str(out)]
    environment = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = preload.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def attempts(runs: Path, name: str) -> list[dict]:
    return json.loads((runs / f"{name}.json").read_text())


def result(runs: Path, name: str) -> dict:
    return json.loads((state_of(runs / name) / "finished.json").read_text())


def test_stopped_between_a_step_and_its_measurement_it_goes_on_exactly(runs: Path):
    found = attempts(runs, "stopped")
    assert [attempt["done"] for attempt in found] == [0, 5, 8, 13, 20, 25, STEPS]
    assert [attempt["end"] for attempt in found] == [False] * 6 + [True]
    assert "has not begun" in found[0]["output"]
    assert metrics(runs / "stopped") == metrics(runs / "undisturbed")
    assert result(runs, "stopped") | {"run": "undisturbed"} == result(runs, "undisturbed")
    for which in ("final", "best"):
        weights = [runs / name / result(runs, name)[which]["weights"] for name in ("stopped", "undisturbed")]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_an_evaluation_that_was_broken_off_is_done_on_continuing(runs: Path):
    second = attempts(runs, "stopped")[1]["output"]
    third = attempts(runs, "stopped")[2]["output"]
    assert "held-out loss after step 5" not in second
    assert third.index("continuing after step 5") < third.index("held-out loss after step 5")


def test_without_time_a_run_does_not_begin_but_one_that_has_begun_advances(runs: Path):
    found = attempts(runs, "late")
    assert [(attempt["end"], attempt["done"]) for attempt in found] == [(False, 0), (False, 2), (False, 3), (False, 4)]


def test_no_step_begins_that_may_not_end_in_time(runs: Path):
    """The slowest step took more than half of the time that is left."""
    (found,) = attempts(runs, "slow")
    assert (found["end"], found["done"]) == (False, 0)


def test_early_stopping_ends_a_run_and_is_logged(runs: Path):
    first, ended = attempts(runs, "early")
    assert not first["end"]
    finished = result(runs, "early")
    assert ended["end"] and ended["done"] == finished["steps"] < finished["planned_steps"] == STEPS
    assert "early stopping after step" in ended["output"] and "2 measurements ago" in ended["output"]
    losses = {line["step"]: line["heldout_loss"] for line in metrics(runs / "early") if "heldout_loss" in line}
    measured = [step for step in losses if step]
    assert finished["best"]["step"] == measured[-3] and finished["final"]["step"] == measured[-1]
    assert all(losses[step] >= losses[measured[-3]] for step in measured[-2:])


def test_the_weights_before_training_are_no_result_however_good(runs: Path):
    before, *after = [line["heldout_loss"] for line in metrics(runs / "worse") if "heldout_loss" in line]
    best = result(runs, "worse")["best"]
    assert before < min(after) == best["heldout_loss"] and best["step"] > 0


def test_weights_are_kept_as_long_as_the_run_or_a_checkpoint_names_them(runs: Path):
    state, finished = state_of(runs / "undisturbed"), result(runs, "undisturbed")
    kept = [json.loads(path.read_text()) for path in sorted(state.glob("checkpoints/*/checkpoint.json"))]
    of_checkpoints = {Path(facts["best"]["weights"]).name for facts in kept}
    of_run = {Path(finished[which]["weights"]).name for which in ("final", "best")}
    assert len(kept) > 1 and of_checkpoints - of_run, "one checkpoint names weights that are no longer the best"
    assert {path.name for path in (state / "weights").iterdir()} == of_checkpoints | of_run


def test_a_line_holds_rates_memory_and_speed(runs: Path):
    (state,) = (runs / "undisturbed/state").iterdir()
    lines = [json.loads(line) for line in (state / "metrics.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line.get("step") == 2 and "loss" in line)
    assert line["learning_rates"] == {"language": 3e-3, "embeddings": 3e-3, "projector": 3e-3}
    assert line["memory_bytes"] > 1e8 and line["flops_per_second"] > 0
    assert line["supervised_tokens_per_second"] < line["tokens_per_second"]
    speed = json.loads((state / "throughput.json").read_text())
    assert speed["tokens_per_second"] > speed["supervised_tokens_per_second"] > 0
    assert "tokens/s" in attempts(runs, "undisturbed")[0]["output"]
    config = json.loads((state / "deepspeed.json").read_text())
    assert config["zero_optimization"]["stage"] == 2 and config["gradient_clipping"] == 1.0
