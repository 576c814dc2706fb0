"""A run on two nodes of a real Slurm: its numbers, and that it saves, ends and continues whatever happens to it.

The job's environment is what a job of Snakemake's plugin has: no variable of Slurm but the job's number.
"""

import os
import shlex
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.slurm import Slurm
from tests.runs import REPOSITORY, TrainingSetup, finished, lines_written, metrics, state_of

TWO = {"nodes": 2, "ranks": 2}
STRIP = "for v in $(compgen -v SLURM_); do case $v in SLURM_JOB_ID|SLURM_JOBID|SLURM_CONF) ;; *) unset $v;; esac; done"


def submit(slurm: Slurm, lab: TrainingSetup, out: Path, after: str = "", **changes) -> str:
    """Submit a run; `after` is what the job does when the run has ended. Returns the job's number."""
    script = lab.root / f"{out.name}.sh"
    command = shlex.join(lab.command(out, **TWO | changes))
    script.write_text(
        f"#!/bin/bash\n{STRIP}\nexport PYTHONPATH={REPOSITORY}\ncd {lab.root}\n{command}\necho status $?\n{after}\n"
    )
    options = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", f"--output={log_of(lab, out)}"]
    return slurm.run("sbatch", "--parsable", *options, str(script)).strip()


def log_of(lab: TrainingSetup, out: Path) -> Path:
    return lab.root / f"{out.name}.output"


def wait(happened, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def end(slurm: Slurm, lab: TrainingSetup, out: Path, job: str) -> str:
    """Wait for the end of a job and return its output."""
    wait(lambda: job not in slurm.jobs())
    return log_of(lab, out).read_text()


def ranks(out: Path) -> list[psutil.Process]:
    """The living ranks of a run, on both nodes: they are processes of this machine."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        # Of a process that ended meanwhile there is nothing to know.
        words, environment = process.info["cmdline"] or [], process.info["environ"] or {}
        if "scripts.training.worker" in words and str(state_of(out)) in words and "RANK" in environment:
            found.append(process)
    return found


def process(out: Path, *words: str) -> psutil.Process:
    """The process of a run whose command line has `words`; the first one, where it has split itself."""
    found = [
        each
        for each in psutil.process_iter(["cmdline"])
        if (line := each.info["cmdline"]) and all(word in line for word in words) and str(out) in " ".join(line)
    ]
    return min(found, key=lambda each: each.pid)


@pytest.fixture(scope="module")
def undisturbed(lab: TrainingSetup) -> Path:
    """A run of two ranks on one node."""
    status, output = lab.train(lab.root / "train/undisturbed")
    assert status == 0, output
    return lab.root / "train/undisturbed"


def test_two_nodes_have_the_losses_and_the_weights_of_one(slurm: Slurm, lab: TrainingSetup, undisturbed: Path):
    out = lab.root / "train/two"
    output = end(slurm, lab, out, submit(slurm, lab, out))
    assert "status 0" in output and "training tiny: 100% 26/26" in output, output
    assert metrics(out) == metrics(undisturbed) and finished(out) == finished(undisturbed)
    for which in ("final", "best"):
        weights = finished(out)[which]["weights"]
        assert (out / weights).read_bytes() == (undisturbed / weights).read_bytes()
    assert (state_of(out) / "log.node-1.txt").exists(), "the second node keeps a log of its own"


@pytest.mark.parametrize("how", [["--signal=TERM"], ["--signal=TERM", "--full"], []], ids=["steps", "batch", "cancel"])
def test_a_job_that_is_asked_to_end_saves_and_the_next_one_continues(
    slurm: Slurm, lab: TrainingSetup, undisturbed: Path, how: list[str]
):
    out = lab.root / f"train/asked{len(how)}"
    job = submit(slurm, lab, out)
    wait(lambda: lines_written(out) >= 7)
    slurm.run("scancel", *how, job)
    output = end(slurm, lab, out, job)
    assert not (out / "finished.json").exists() and not ranks(out)
    # Where the whole job is cancelled, its shell is gone before the launcher can say so.
    assert "stopped and saved" in output or not how, output
    newest = max(path.name for path in (state_of(out) / "checkpoints").iterdir())
    assert newest > "step-00000004", "more than the last one of those that are due every four steps"
    output = end(slurm, lab, out, submit(slurm, lab, out))
    assert "status 0" in output and "continuing after step" in output, output
    assert metrics(out) == metrics(undisturbed)


@pytest.mark.parametrize("victim", ["launcher", "srun", "torchrun", "rank"])
def test_kill_9_of_any_part_ends_all_ranks_on_both_nodes(
    slurm: Slurm, lab: TrainingSetup, undisturbed: Path, victim: str
):
    out = lab.root / f"train/{victim}"
    # The job lives on, so that it is not Slurm that clears up.
    job = submit(slurm, lab, out, after="sleep 120")
    wait(lambda: lines_written(out) >= 6)
    alive = ranks(out)
    assert len(alive) == 2
    victims = {
        "launcher": lambda: process(out, "scripts.train"),
        "srun": lambda: process(out, "srun"),
        "torchrun": lambda: next(each.parent() for each in alive if each.environ()["RANK"] == "1"),
        "rank": lambda: next(each for each in alive if each.environ()["RANK"] == "1"),
    }
    os.kill(victims[victim]().pid, signal.SIGKILL)
    wait(lambda: not ranks(out), 60)
    if victim != "launcher":
        wait(lambda: "status 1" in log_of(lab, out).read_text(), 60)
        assert "Traceback" not in log_of(lab, out).read_text()
    slurm.run("scancel", job)
    end(slurm, lab, out, job)
    output = end(slurm, lab, out, submit(slurm, lab, out))
    assert "status 0" in output, output
    assert metrics(out) == metrics(undisturbed)


def test_a_second_job_on_another_node_is_refused_with_the_name_of_the_first(slurm: Slurm, lab: TrainingSetup):
    out = lab.root / "train/second"
    job = submit(slurm, lab, out)
    wait(lambda: lines_written(out) >= 1)
    status, output = lab.train(out)
    assert status == 1 and "is being trained by process" in output and " on " in output
    slurm.run("scancel", job)
    end(slurm, lab, out, job)


def test_a_job_with_too_few_nodes_is_one_clear_error(slurm: Slurm, lab: TrainingSetup):
    out = lab.root / "train/few"
    output = end(slurm, lab, out, submit(slurm, lab, out, nodes=3, ranks=3))
    assert "needs 3 nodes" in output and "has 2" in output and "Traceback" not in output
