"""The whole graph on a real Slurm through profiles/slurm: data, a training on two nodes that is asked to end once and
cancelled once, its continuation, export, evaluation and the report."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.runs import finished, lines_written
from tests.workflow.project import TINY, Project

pytest.importorskip("snakemake_executor_plugin_slurm", reason="pip install -r envs/requirements-cluster.txt")

# The test cluster keeps no accounts, and its jobs are short.
SITE = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10"]
SITE += ["--slurm-no-account"]


def configuration() -> dict:
    config = copy.deepcopy(TINY)
    config["blends"] = {"plain": copy.deepcopy(TINY["blends"]["plain"])}
    # One part for all epochs, or there would be a job for each.
    config["blends"]["plain"] |= {"datasets": {"llava": {"samples": 40}}, "redraw": False, "packing": False}
    config["media"] = {"coco": {"shards": 1}}
    run = {"model": "small", "blend": "plain", "train_language": "full", "ranks": 2, "nodes": 2, "micro_batch": 1}
    config["runs"] = {"two_nodes": run | {"epochs": 40, "checkpoint_every": 50, "evaluate_batches": 2}}
    return config


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project.create(tmp_path_factory.mktemp("graph") / "project", configuration())


def job_of(slurm: Slurm, rule: str) -> str | None:
    """The number of the running job of a rule; Snakemake names it in the job's comment."""
    for line in slurm.run("squeue", "-h", "-t", "R", "-o", "%i %k").splitlines():
        number, _, comment = line.partition(" ")
        if rule in comment:
            return number
    return None


def test_the_whole_graph_with_an_interrupted_training_on_two_nodes(slurm: Slurm, project: Project, tmp_path: Path):
    output = tmp_path / "output.txt"
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", "--configfile", "tiny.yaml", *SITE]
    environment = os.environ | slurm.environment
    with open(output, "w") as file:
        # The daemons' children keep an inherited pipe open, so its output is a file.
        snakemake = subprocess.Popen(
            command, cwd=project.folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    run = project.folder / "out/train/two_nodes"
    try:
        stopped = 0
        for how in (["--signal=TERM"], []):
            wait(snakemake, output, lambda more=stopped + 60: lines_written(run) > more)
            job = job_of(slurm, "train_run")
            slurm.run("scancel", *how, job)
            wait(snakemake, output, lambda job=job: job not in slurm.jobs())
            stopped = lines_written(run)
            assert not (run / "finished.json").exists()
        assert snakemake.wait(3600) == 0, output.read_text()[-6000:]
    finally:
        snakemake.kill()
        snakemake.wait()
    log = (project.folder / "out/logs/train/two_nodes.log").read_text()
    assert "continuing after step" in log
    state = next((run / "state").iterdir())
    assert (state / "log.node-1.txt").exists()
    lines = [json.loads(line) for line in (state / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, finished(run)["steps"] + 1)), "every step stands once in the record"
    assert (project.folder / "out/evaluate/two_nodes/metrics.json").exists()
    assert (project.folder / "out/report.html").exists()
    again = subprocess.run(
        [*command, "--dry-run"],
        check=False,
        cwd=project.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "Nothing to be done" in again.stdout + again.stderr


def wait(snakemake: subprocess.Popen, output: Path, happened, seconds: float = 3600) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert snakemake.poll() is None and time.monotonic() < deadline, output.read_text()[-6000:]
        time.sleep(0.3)
