"""Starts the ranks of a run, receives their messages, and makes sure that all end with it.

    python -m scripts.train             the launcher: light, holds the run's lock, prints messages for the user
      +- (srun)                         where the run has several nodes
          +- scripts.training.node_launcher  one per node: starts and watches the ranks there
              +- scripts.training.worker    one process per rank

Each process asks the kernel to be killed when its parent dies (`parent_death.py`), and with several nodes each torchrun
watches the launcher's lock (`runlock.py`). So `kill -9` of any of them, the launcher included, ends all of them.

Rank 0's messages come through standard output, which `srun` brings from the first node; everything that ranks and
libraries print goes to `log.txt`, on further nodes to `log.node-1.txt` and so on.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.training.nodes import Topology
from scripts.training.parent_death import PARENT
from scripts.training.runlock import launcher_lives
from scripts.training.watchdog import kill_hung_ranks

_SECONDS_TO_SAVE = "300"
_SECONDS_TO_WAIT_FOR_LAUNCHER = 600.0
_ROOT = Path(__file__).resolve().parents[2]


def environment(threads: int) -> dict[str, str]:
    """The environment of the ranks.

    The number of threads comes from the settings, never from the environment: workflow engines export the job's number,
    and sums over another number of threads have other last digits.
    """
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": path,
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _SECONDS_TO_SAVE,
        PARENT: str(os.getpid()),
    }


def run_ranks(
    topology: Topology,
    ranks: int,
    threads: int,
    arguments: Sequence[str],
    log: Path,
    on_message: Callable[[dict[str, Any]], None],
    devices: Sequence[str] | None = None,
) -> int:
    """Run the workers to their end and return the exit status of torchrun or srun.

    What the ranks and their libraries print goes to `log`; the messages that rank 0 sends (`redirect_output`) go to
    `on_message`. SIGTERM, SIGINT and SIGUSR1 are passed on once: the ranks then save and end. `devices` are the GPUs
    that they may see, all if None.

    Raises:
        UserError: a node cannot take part.
    """
    refused: list[str] = []
    visible = {} if devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            topology.command(ranks, log.parent / "lock", arguments),
            env=environment(threads) | visible,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            # Its own session: a Ctrl-C on the terminal reaches the launcher alone, which passes it on.
            start_new_session=True,
        )
        # srun kills its tasks at SIGTERM; node_launcher.py turns SIGUSR1 into it.
        stop = _stopper(process, signal.SIGUSR1 if topology.through_srun else signal.SIGTERM)
        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        threading.Thread(target=kill_hung_ranks, args=(process, log.parent / "ranks"), daemon=True).start()
        try:
            for line in process.stdout or ():
                try:
                    message = json.loads(line)
                except ValueError:
                    output.write(line)
                    continue
                if "refused" in message:
                    refused.append(message["refused"])
                else:
                    on_message(message)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)
    if refused:
        raise UserError(refused[0])
    return status


def wait_for_launcher(lock: Path, node: int) -> None:
    """On another node than 0: wait until node 0 has taken the run's lock.

    Raises:
        UserError: it has not within ten minutes.
    """
    deadline = time.monotonic() + _SECONDS_TO_WAIT_FOR_LAUNCHER
    while not launcher_lives(lock):
        if time.monotonic() > deadline:
            raise UserError(
                f"node {node} has waited {_SECONDS_TO_WAIT_FOR_LAUNCHER:.0f} s for node 0 to hold {lock}: either it "
                "has failed (see its own output), or the nodes do not share this folder"
            )
        time.sleep(1)


def _stopper(process: subprocess.Popen[bytes], request: signal.Signals) -> Callable[[int, object], None]:
    sent = False

    def stop(number: int, frame: object) -> None:
        nonlocal sent
        if not sent:
            sent = True
            process.send_signal(request)

    return stop


def redirect_output(log: Path) -> Callable[[dict[str, Any]], None]:
    """In a rank: redirect its output to the node's log, and return the function that sends the launcher a message."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Appending to one file from several nodes loses lines on network file systems.
    node = int(os.environ.get("GROUP_RANK", "0"))
    with open(log.with_name(f"log.node-{node}.txt") if node else log, "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)

    def send(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    return send
