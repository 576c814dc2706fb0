"""A rank without progress times out with its stack; one that makes progress, or has stopped its timer, does not."""

import os
import subprocess
import sys
from pathlib import Path

from scripts.training import watchdog
from tests.runs import REPOSITORY

RANK = """
import sys, threading, time
from pathlib import Path
from scripts.training.watchdog import Watchdog

def read_from_a_dead_disk():
    time.sleep(60)

def prefetch():
    time.sleep(60)

threading.Thread(target=prefetch, daemon=True).start()
dog = Watchdog(Path(sys.argv[1]), 1, 0.5)
for _ in range(4):
    dog.restart()
    time.sleep(0.2)
if sys.argv[2] == "cancel":
    dog.cancel()
    time.sleep(1)
    sys.exit(0)
read_from_a_dead_disk()
"""


def rank(folder: Path, how: str) -> int:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", RANK, folder, how]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=False).returncode


def test_a_rank_that_hangs_ends_with_the_stack_of_its_main_thread(tmp_path: Path):
    assert rank(tmp_path, "hang") == 1
    output = watchdog.hang_report(tmp_path, ranks=2)
    assert "rank 1 hangs" in output and "read_from_a_dead_disk" in output and "prefetch" not in output
    assert "rank 0 wrote no stack: its process is frozen" in output
    assert "prefetch" in watchdog.stack_path(tmp_path, 1).read_text()


def test_progress_or_a_cancelled_timer_is_no_hang(tmp_path: Path):
    assert rank(tmp_path, "cancel") == 0
    assert watchdog.hang_report(tmp_path, ranks=2) is None and not list(tmp_path.iterdir())


def test_ranks_that_only_wait_are_distinguished_from_the_one_that_hangs(tmp_path: Path):
    frames = '  File "/lib/torch/distributed/c10d.py", line 9 in all_reduce\n  File "/x/engine.py", line 1 in step\n'
    watchdog.stack_path(tmp_path, 0).write_text(f"Timeout!\nThread 0x1 (most recent call first):\n{frames}")
    stuck = '  File "/x/blend_reader.py", line 3 in _pread\n'
    watchdog.stack_path(tmp_path, 1).write_text(f"Timeout!\nThread 0x2 (most recent call first):\n{stuck}")
    output = watchdog.hang_report(tmp_path, ranks=2).splitlines()
    assert output[:3] == [
        "rank 1 hangs in (innermost first):",
        "    /x/blend_reader.py:3 _pread",
        "rank 0 waits for the others",
    ]


def test_a_process_that_cannot_end_itself_is_ended(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(watchdog, "_SECONDS_FOR_OTHERS", 0.0)
    watchdog.stack_path(tmp_path, 0).write_text("Timeout!")
    frozen = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watchdog.kill_hung_ranks(frozen, tmp_path)
    assert frozen.wait(10) < 0
