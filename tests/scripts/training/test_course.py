"""The course of a run: stopped anywhere it goes on as if nothing had been; no time left; an end that comes early."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests import preload
from tests.runs import REPOSITORY, STEPS, TrainingSetup, metrics, state_of


@pytest.fixture(scope="module")
def course(lab: TrainingSetup, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("course")
    command = [sys.executable, "-m", "tests.scripts.training.run_interrupted", str(lab.root), str(out)]
    environment = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = preload.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def attempts(course: Path, name: str) -> list[dict]:
    return json.loads((course / f"{name}.json").read_text())


def result(course: Path, name: str) -> dict:
    return json.loads((state_of(course / name) / "finished.json").read_text())


def test_stopped_between_a_step_and_its_measurement_it_goes_on_exactly(course: Path):
    found = attempts(course, "stopped")
    assert [attempt["done"] for attempt in found] == [0, 5, 8, 13, 20, 25, STEPS]
    assert [attempt["end"] for attempt in found] == [False] * 6 + [True]
    assert "has not begun" in found[0]["said"]
    assert metrics(course / "stopped") == metrics(course / "undisturbed")
    assert result(course, "stopped") | {"run": "undisturbed"} == result(course, "undisturbed")
    for which in ("final", "best"):
        weights = [course / name / result(course, name)[which]["weights"] for name in ("stopped", "undisturbed")]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_measurement_that_was_cut_off_is_made_up_for(course: Path):
    second = attempts(course, "stopped")[1]["said"]
    third = attempts(course, "stopped")[2]["said"]
    assert "held-out loss after step 5" not in second
    assert third.index("continuing after step 5") < third.index("held-out loss after step 5")


def test_without_time_there_is_no_beginning_but_a_run_that_has_begun_gets_on(course: Path):
    found = attempts(course, "late")
    assert [(attempt["end"], attempt["done"]) for attempt in found] == [(False, 0), (False, 2), (False, 3), (False, 4)]


def test_no_step_begins_that_may_not_end_in_time(course: Path):
    """The slowest step took more than half of the time that is left."""
    (found,) = attempts(course, "slow")
    assert (found["end"], found["done"]) == (False, 0)


def test_a_run_ends_early_where_nothing_improves_and_says_so(course: Path):
    first, ended = attempts(course, "early")
    assert not first["end"]
    finished = result(course, "early")
    assert ended["end"] and ended["done"] == finished["steps"] < finished["planned_steps"] == STEPS
    assert "ending after step" in ended["said"] and "2 measurements ago" in ended["said"]
    losses = {line["step"]: line["heldout_loss"] for line in metrics(course / "early") if "heldout_loss" in line}
    measured = [step for step in losses if step]
    assert finished["best"]["step"] == measured[-3] and finished["final"]["step"] == measured[-1]
    assert all(losses[step] >= losses[measured[-3]] for step in measured[-2:])


def test_the_weights_before_training_are_no_result_however_good(course: Path):
    before, *after = [line["heldout_loss"] for line in metrics(course / "worse") if "heldout_loss" in line]
    best = result(course, "worse")["best"]
    assert before < min(after) == best["heldout_loss"] and best["step"] > 0


def test_weights_are_kept_as_long_as_the_run_or_a_checkpoint_names_them(course: Path):
    state, finished = state_of(course / "undisturbed"), result(course, "undisturbed")
    kept = [json.loads(path.read_text()) for path in sorted(state.glob("checkpoints/*/checkpoint.json"))]
    of_checkpoints = {Path(facts["best"]["weights"]).name for facts in kept}
    of_run = {Path(finished[which]["weights"]).name for which in ("final", "best")}
    assert len(kept) > 1 and of_checkpoints - of_run, "one checkpoint names weights that are no longer the best"
    assert {path.name for path in (state / "weights").iterdir()} == of_checkpoints | of_run


def test_a_line_tells_rates_memory_and_speed(course: Path):
    (state,) = (course / "undisturbed/state").iterdir()
    lines = [json.loads(line) for line in (state / "metrics.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line.get("step") == 2 and "loss" in line)
    assert line["learning_rates"] == {"language": 3e-3, "embeddings": 3e-3, "projector": 3e-3}
    assert line["memory_bytes"] > 1e8 and line["flops_per_second"] > 0
    assert line["supervised_tokens_per_second"] < line["tokens_per_second"]
    speed = json.loads((state / "throughput.json").read_text())
    assert speed["tokens_per_second"] > speed["supervised_tokens_per_second"] > 0
    assert "tokens/s" in attempts(course, "undisturbed")[0]["said"]
    config = json.loads((state / "deepspeed.json").read_text())
    assert config["zero_optimization"]["stage"] == 2 and config["gradient_clipping"] == 1.0
