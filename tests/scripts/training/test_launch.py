"""Processes: the lock is held exactly as long as one of them lives, and all exit with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.common.errors import UserError
from scripts.training import launch, runlock
from scripts.training.runlock import RunLock
from tests.runs import REPOSITORY

PARENT = """
import os, subprocess, sys, time
os.environ["VISUALCHAT_PARENT"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
print(child.pid, flush=True)
time.sleep(60)
"""
RANK = """
import sys, time
from pathlib import Path
from scripts.training.parent_death import die_with_parent
from scripts.training.runlock import RunLock
die_with_parent()
lock = RunLock(Path(sys.argv[1]))
lock.take_rank(1)
Path(sys.argv[2]).touch()
time.sleep(60)
"""


def start(code: str, *arguments) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_launcher_is_refused_with_the_name_of_the_first(tmp_path: Path):
    ready = tmp_path / "ready"
    code = (
        "import sys, time; from pathlib import Path; from scripts.training.runlock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); lock.take_all(); Path(sys.argv[2]).touch(); time.sleep(60)"
    )
    first = start(code, tmp_path / "lock", ready)
    try:
        wait_for(ready)
        with pytest.raises(UserError, match=f"is being trained by process {first.pid}"):
            RunLock(tmp_path / "lock").take_all()
    finally:
        first.kill()
        first.wait()
    RunLock(tmp_path / "lock").take_all()


def test_a_rank_dies_with_its_parent_and_frees_the_lock(tmp_path: Path):
    ready = tmp_path / "ready"
    parent = start(PARENT, RANK, tmp_path / "lock", ready)
    rank = psutil.Process(int(parent.stdout.readline()))
    wait_for(ready)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    RunLock(tmp_path / "lock").take_all()
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE


def test_ranks_that_live_on_are_waited_for_and_then_named(tmp_path: Path, monkeypatch):
    ready = tmp_path / "ready"
    parent = start(PARENT, RANK, tmp_path / "lock", ready)
    try:
        wait_for(ready)
        monkeypatch.setattr(runlock, "_SECONDS_TO_DIE", 0.3)
        with pytest.raises(UserError, match="ranks of an earlier run are still alive"):
            RunLock(tmp_path / "lock").take_all()
    finally:
        parent.kill()
        parent.wait()


def test_the_number_of_threads_comes_from_the_settings(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = launch.environment(threads=3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(REPOSITORY), "/elsewhere"]
