"""A real Snakemake with profiles/kubernetes and a kubectl that runs jobs on this machine, fails, and is interrupted."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.workflow.project import ROOT

pytest.importorskip("snakemake_executor_plugin_cluster_generic", reason="pip install -r envs/requirements-cluster.txt")

PATIENCE = 300
SNAKEFILE = """
import sys
sys.path.insert(0, {root!r})
from scripts.workflow.k8s_cluster import offer_commands

offer_commands()

rule all:
    input: expand("made/{{name}}", name=config["names"].split("-"))

rule step:
    output: "made/{{name}}"
    params: seconds=config["seconds"]
    shell: "touch on.{{wildcards.name}}; sleep {{params.seconds}}; test {{wildcards.name}} != bad; touch {{output}}"
"""


@dataclass
class Cluster:
    """The stand-in at `world`, and a working folder of Snakemake beside it."""

    world: Path
    work: Path

    def start(self, names: str = "a-b-c", seconds: float = 0, retry_seconds: int = 60) -> subprocess.Popen:
        site = {"image": "x", "claim": "c", "namespace": "team", "poll_seconds": 1, "retry_seconds": retry_seconds}
        (self.world / "site.json").write_text(json.dumps(site))
        (self.work.parent / "Snakefile").write_text(SNAKEFILE.format(root=str(ROOT)))
        profile = os.path.relpath(ROOT / "profiles/kubernetes")
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(self.work.parent / "Snakefile"), "--nocolor"]
        command += ["--profile", profile, "--directory", str(self.work), "--retries", "0", "--latency-wait", "10"]
        command += ["--seconds-between-status-checks", "1", "--config", f"names={names}", f"seconds={seconds}"]
        environment = os.environ | {"VISUALCHAT_K8S": str(self.world / "site.json"), "FAKE_CLUSTER": str(self.world)}
        environment["PATH"] = f"{self.world / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def faults(self, *lines: str) -> None:
        (self.world / "faults").write_text("".join(f"{line}\n" for line in lines))

    def calls(self, verb: str) -> list[str]:
        return [line for line in (self.world / "calls").read_text().splitlines() if line.startswith(verb)]

    def jobs(self) -> list[str]:
        """The jobs that have not ended."""
        jobs = [json.loads(path.read_text()) for path in (self.world / "jobs").glob("*.json")]
        return [job["metadata"]["name"] for job in jobs if not job["status"]]

    def processes(self) -> list[psutil.Process]:
        """The processes of all pods, and Snakemake's watcher with what it has started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FAKE_CLUSTER") == str(self.world) and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path / "world", tmp_path / "the work")
    for folder in (made.world / "jobs", made.world / "bin", made.work):
        folder.mkdir(parents=True)
    kubectl = made.world / "bin/kubectl"
    kubectl.write_text(f"#!{sys.executable}\n" + (ROOT / "tests/scripts/workflow/stand_in_kubectl.py").read_text())
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    yield made
    for process in made.processes():
        process.kill()


def wait(happened, snakemake: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        assert snakemake is None or snakemake.poll() is None, snakemake.communicate()[0][-4000:]
        time.sleep(0.1)


def ended(snakemake: subprocess.Popen) -> str:
    """What a Snakemake printed until its end."""
    return snakemake.communicate(timeout=PATIENCE)[0]


def test_jobs_run_and_are_queried_together(cluster):
    snakemake = cluster.start(names="a-b-c-d-e-f", seconds=3)
    output = ended(snakemake)
    assert snakemake.returncode == 0, output[-4000:]
    assert len(list((cluster.work / "made").iterdir())) == 6 == len(cluster.calls("create"))
    assert all("--selector" in call for call in cluster.calls("get")), "no query for a single job"
    assert cluster.calls("delete") == [] and not list((cluster.work / ".snakemake").glob("k8s-*"))


def test_a_failed_job_is_reported(cluster):
    snakemake = cluster.start(names="a-bad")
    output = ended(snakemake)
    assert snakemake.returncode == 1 and "Error in rule step" in output
    assert [path.name for path in (cluster.work / "made").iterdir()] == ["a"]


def test_every_failure_of_kubectl_is_survived(cluster):
    cluster.faults(
        *["create refused", "create lost", "create silent", "create lost"],
        *["get refused", "get garbage", "get partial", "get silent", "get slow", "get refused", "get partial"],
    )
    snakemake = cluster.start(seconds=1)
    output = ended(snakemake)
    assert snakemake.returncode == 0, output[-4000:]
    assert (cluster.world / "faults").read_text() == "", "all failures have happened"
    assert len(list((cluster.world / "jobs").iterdir())) == 3, "a repeated request creates no second job"


def test_while_the_api_is_away_jobs_are_running(cluster):
    snakemake = cluster.start(seconds=2)
    wait(lambda: len(list((cluster.world / "jobs").glob("*.json"))) == 3, snakemake)
    cluster.faults("* refused")
    wait(lambda: not cluster.jobs(), snakemake)
    seen = len(cluster.calls("get"))
    wait(lambda: len(cluster.calls("get")) >= seen + 2, snakemake)
    assert snakemake.poll() is None
    cluster.faults()
    output = ended(snakemake)
    assert snakemake.returncode == 0 and "answers again" in output, output[-4000:]


def test_a_job_that_somebody_deleted_has_failed(cluster):
    snakemake = cluster.start(names="a", seconds=600)
    wait(cluster.jobs, snakemake)
    wait((cluster.work / "on.a").exists, snakemake)
    (cluster.world / f"jobs/{cluster.jobs()[0]}.json").unlink()
    output = ended(snakemake)
    assert snakemake.returncode == 1 and "does not exist any more" in output, output[-4000:]


@pytest.mark.parametrize("how", ["terminal", "process", "killed", "hangup"])
def test_an_interrupted_snakemake_leaves_no_pod(cluster, how):
    cluster.faults("delete refused", "delete silent")
    snakemake = cluster.start(seconds=600)
    wait(lambda: all((cluster.work / f"on.{name}").exists() for name in "abc"), snakemake)
    assert len(cluster.jobs()) == 3
    if how == "terminal":  # Ctrl-C goes to all processes of the terminal's group
        os.killpg(snakemake.pid, signal.SIGINT)
    elif how == "hangup":
        os.killpg(snakemake.pid, signal.SIGHUP)
    else:
        snakemake.send_signal(signal.SIGINT if how == "process" else signal.SIGKILL)
    snakemake.wait(PATIENCE)
    if how in ("terminal", "process"):
        assert cluster.jobs() == [], "Snakemake waits until they are deleted"
    wait(lambda: not cluster.processes())
    assert cluster.jobs() == [] and not list((cluster.work / ".snakemake").glob("k8s-*"))


def test_interrupted_while_a_job_is_being_created(cluster):
    cluster.faults("create slow")
    snakemake = cluster.start(names="a", seconds=600)
    wait(lambda: (cluster.world / "calls").exists() and cluster.calls("create"), snakemake)
    os.killpg(snakemake.pid, signal.SIGINT)
    snakemake.wait(PATIENCE)
    assert cluster.jobs() == []
    wait(lambda: not cluster.processes())
    assert cluster.calls("delete"), "it had been created"


def test_interrupted_while_the_api_is_away(cluster):
    snakemake = cluster.start(names="a", seconds=600, retry_seconds=3)
    wait((cluster.work / "on.a").exists, snakemake)
    cluster.faults("* refused")
    os.killpg(snakemake.pid, signal.SIGINT)
    output = ended(snakemake)
    assert "delete them with: kubectl --namespace team delete job --selector visualchat-run=k8s-" in output


def test_a_watcher_that_was_killed_is_replaced(cluster):
    snakemake = cluster.start(names="a", seconds=12)
    wait((cluster.work / "on.a").exists, snakemake)
    state = next((cluster.work / ".snakemake").glob("k8s-*"))
    os.kill(int((state / "pid").read_text()), signal.SIGKILL)
    output = ended(snakemake)
    assert snakemake.returncode == 0, output[-4000:]
    wait(lambda: not state.exists())


def test_a_cluster_that_refuses_ends_the_workflow(cluster):
    cluster.faults("* forbidden")
    snakemake = cluster.start(names="a")
    output = ended(snakemake)
    assert snakemake.returncode == 1 and "jobs.batch is forbidden" in output
    cluster.faults("create forbidden")
    (cluster.world / "calls").unlink()
    snakemake = cluster.start(names="a")
    output = ended(snakemake)
    assert snakemake.returncode == 1 and "jobs.batch is forbidden" in output and len(cluster.calls("create")) == 1
