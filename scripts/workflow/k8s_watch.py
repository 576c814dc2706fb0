"""Watch the Kubernetes jobs of one Snakemake process, and delete what is left of them when it ends.

    python -m scripts.workflow.k8s_watch        started by Snakemake, as the sidecar of profiles/kubernetes

Prints the folder that it shares with the other commands, and keeps in it:

    pid, snakemake      numbers of this process and of the Snakemake that it belongs to
    asked/NAME          Snakemake has asked for the status of the job NAME
    ended/NAME          what became of a job: `success` or `failed`
    submitting          locked (shared) by every process that is creating a job
    closed              from now on, no job may be created

All jobs are queried at once. While the API cannot be reached nothing is written, so every job counts as running; a job
has failed only if the API reports so, or reports that the job does not exist.

Snakemake's end, by any way, is noticed within a second: jobs that are being created are waited for, and all that have
not ended are deleted. Snakemake itself waits for this, so that no pod is left when it has exited.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import atomic
from scripts.workflow.k8s_cluster import (
    RUN_LABEL,
    STATE_VARIABLE,
    ClusterConfig,
    RefusedError,
    UnavailableError,
    cluster_settings,
    kubectl,
    pauses,
)

_TICK = 0.5  # seconds between two looks whether Snakemake still runs


class Watcher:
    """The watcher of one Snakemake process."""

    def __init__(self, cluster: ClusterConfig, state: Path) -> None:
        self.cluster, self.state = cluster, state
        self.selector = f"{RUN_LABEL}={state.name}"
        self.stopping = False
        self.reachable = True

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Note that Snakemake has asked for the end (handler of SIGTERM)."""
        self.stopping = True

    def watch(self) -> None:
        """Query until Snakemake ends, then delete what is left."""
        later = pauses()
        while not self._ended():
            try:
                self.query()
            except (UnavailableError, RefusedError) as error:
                self._note(f"the status of the jobs is unknown, they count as running: {error}")
                self._pause(next(later))
                continue
            self._note(None)
            later = pauses()
            self._pause(self.cluster.poll_seconds)
        self.clean_up()

    def query(self) -> None:
        """Record what became of the jobs.

        Raises:
            UnavailableError: the API cannot be reached, or its answer is not what was asked for.
            RefusedError: the API refused the request.
        """
        # Before the query: a job that was asked for exists, so that its absence from the answer means something.
        asked = set(os.listdir(self.state / "asked")) - set(os.listdir(self.state / "ended"))
        jobs = {name_of(job): job for job in self._jobs("--selector", self.selector)}
        if absent := sorted(asked - set(jobs)):
            # Also jobs of an earlier Snakemake, whose label is another one.
            jobs |= {name_of(job): job for job in self._jobs(*absent, "--ignore-not-found")}
        for name in asked:
            verdict = outcome(jobs[name]) if name in jobs else "failed"
            if name not in jobs:
                report(f"job {name} does not exist any more, so it counts as failed")
            if verdict != "running":
                with atomic(self.state / "ended" / name, "w") as file:
                    file.write(verdict)

    def clean_up(self) -> None:
        """Delete the jobs that have not ended, also those that are being created now; remove the shared folder."""
        (self.state / "closed").touch()
        with open(self.state / "submitting", "w", encoding="utf-8") as lock:
            if not self._delete_all(lock.fileno()):
                command = f"kubectl --namespace {self.cluster.namespace} delete job --selector {self.selector}"
                report(f"jobs may be left in the cluster; delete them with: {command}")
            # Under the lock: a process that waits for it to create a job finds no folder, and creates none.
            shutil.rmtree(self.state, ignore_errors=True)

    def _delete_all(self, lock: int) -> bool:
        """Delete the jobs that have not ended; false if the API refuses that, or is away for `retry_seconds`."""
        deadline, later = time.monotonic() + self.cluster.retry_seconds, pauses()
        while time.monotonic() < deadline:
            try:
                # Before the query: a job that is created after it would not be in the answer.
                quiet = _locked(lock)
                left = self._left()
                if left:
                    kubectl(self.cluster, "delete", "job", "--ignore-not-found", "--wait=false", *map(name_of, left))
                elif quiet:
                    return True
                time.sleep(_TICK)
            except UnavailableError as error:
                self._note(f"the jobs of the ended Snakemake cannot be deleted yet: {error}")
                time.sleep(min(next(later), max(0.0, deadline - time.monotonic())))
            except RefusedError as error:
                report(str(error))
                return False
        return False

    def _left(self) -> list[dict[str, Any]]:
        """The jobs that have not ended and are not being deleted: those of this run, and others that were asked for."""
        found = {name_of(job): job for job in self._jobs("--selector", self.selector)}
        others = set(os.listdir(self.state / "asked")) - set(os.listdir(self.state / "ended")) - set(found)
        if others:
            found |= {name_of(job): job for job in self._jobs(*sorted(others), "--ignore-not-found")}
        alive = [job for job in found.values() if outcome(job) == "running"]
        return [job for job in alive if "deletionTimestamp" not in job["metadata"]]

    def _jobs(self, *which: str) -> list[dict[str, Any]]:
        """The jobs that `which` selects, as the API describes them."""
        text = kubectl(self.cluster, "get", "job", *which, "--output", "json")
        if not text.strip() and "--ignore-not-found" in which:
            return []
        try:
            answer = json.loads(text)
            jobs = answer["items"] if answer["kind"].endswith("List") else [answer]
            for job in jobs:
                name_of(job), outcome(job)  # an answer without these is none
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UnavailableError(f"kubectl get did not print jobs but {text[:80]!r}") from None
        return jobs

    def _ended(self) -> bool:
        """Whether Snakemake has asked for the end, or does not run any more."""
        if self.stopping:
            return True
        try:
            process = psutil.Process(int((self.state / "snakemake").read_text()))
            # A zombie has ended; its parent may first read its output to the end, which this process holds open.
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._ended() and time.monotonic() < until:
            time.sleep(_TICK)

    def _note(self, trouble: str | None) -> None:
        """Print the first trouble with the API, and its end."""
        if self.reachable != (trouble is None):
            self.reachable = trouble is None
            report(trouble or "the API of the cluster answers again")


def accepts_jobs(state: Path) -> bool:
    """Whether a job may be created now: Snakemake has not ended."""
    return (state / "asked").is_dir() and not (state / "closed").exists()


def report(message: str) -> None:
    """Print a message for the user; the terminal may be gone."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def name_of(job: dict[str, Any]) -> str:
    """The name of a job."""
    return str(job["metadata"]["name"])


def outcome(job: dict[str, Any]) -> str:
    """What Snakemake's cluster-generic executor calls the state of a job: running, success or failed."""
    conditions = job.get("status", {}).get("conditions") or ()
    ended = {condition["type"] for condition in conditions if condition["status"] == "True"}
    return "success" if "Complete" in ended else "failed" if "Failed" in ended else "running"


def open_state() -> Path:
    """Make the shared folder, or take the one of a watcher that has died."""
    if given := os.environ.get(STATE_VARIABLE):
        state = Path(given)
    else:
        Path(".snakemake").mkdir(exist_ok=True)
        # The name is a label of Kubernetes: it begins and ends with a letter or digit.
        state = Path(tempfile.mkdtemp(prefix="k8s-", suffix="-jobs", dir=".snakemake")).resolve()
        (state / "snakemake").write_text(str(os.getppid()))
    for name in ("asked", "ended"):
        (state / name).mkdir(exist_ok=True)
    (state / "submitting").touch()
    (state / "pid").write_text(str(os.getpid()))
    return state


def _locked(descriptor: int) -> bool:
    """Whether an exclusive lock could be taken, so that no other process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    """Run the program."""
    parser(__doc__).parse_args()
    # Ctrl-C in the terminal, and its end, reach this process too; what they mean for the jobs, Snakemake decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cluster = cluster_settings()
    watcher = Watcher(cluster, open_state())
    signal.signal(signal.SIGTERM, watcher.stop)
    # A service account that may not list jobs is an error now, not a workflow that waits for ever.
    with suppress(UnavailableError):
        watcher.query()
    print(watcher.state, flush=True)
    try:
        watcher.watch()
    except FileNotFoundError as error:
        raise UserError(f"the folder of the watcher was removed while it ran: {error.filename}") from None


if __name__ == "__main__":
    run_program(main)
