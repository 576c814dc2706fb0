"""Starts the ranks of a run through torchrun, listens to them, and makes sure that none outlives its run.

    python -m scripts.train            the launcher: light, holds the run's lock, speaks to the person
      +- torchrun (this module)        starts and watches the ranks
          +- scripts.training.worker   one process per rank

Each process asks the kernel to be killed when its parent dies. So `kill -9` of any of them, the launcher included,
ends all of them, and no orphan goes on writing. The lock is a file on which the launcher and every rank hold one byte
each: it is free exactly when all are gone, whatever they died of.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.training.watchdog import end_hung

_PR_SET_PDEATHSIG = 1
_PARENT = "VISUALCHAT_PARENT"
_SECONDS_TO_DIE = 20.0
_SECONDS_TO_SAVE = "300"
_ROOT = Path(__file__).resolve().parents[2]


class RunLock:
    """A lock file with one byte for the launcher (0) and one for each rank (1, 2, ...)."""

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "r+" if path.exists() else "w+", encoding="utf-8")

    def take_all(self) -> None:
        """Take the launcher's byte, and wait until no rank of an earlier, killed launcher lives.

        Raises:
            UserError: a living process trains this run.
        """
        if not self._try(fcntl.LOCK_EX, 1, 0):
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            raise UserError(f"{self._path.parent} is being trained by {owner}; wait for it or stop it")
        deadline = time.monotonic() + _SECONDS_TO_DIE
        while not self._try(fcntl.LOCK_EX, 0, 1):
            if time.monotonic() > deadline:
                raise UserError(f"ranks of an earlier run still live and hold {self._path}; stop them and try again")
            time.sleep(0.1)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 0, 1)
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()}")
        self._file.flush()

    def take_rank(self, rank: int) -> None:
        """Take the byte of a rank; held until the process ends."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 1 + rank)

    def release(self) -> None:
        """Let go of everything this process holds."""
        self._file.close()

    def _try(self, kind: int, length: int, start: int) -> bool:
        try:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB, length, start)
        except OSError:
            return False
        return True


def die_with_parent() -> None:
    """Have the kernel kill this process when the process that started it dies (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the request was made; then this process has another parent by now.
    if os.environ.get(_PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)
    os.environ[_PARENT] = str(os.getpid())


def command(ranks: int, arguments: Sequence[str]) -> list[str]:
    """The command line that runs `ranks` workers with `arguments` on this machine."""
    torchrun = ["--standalone", "--nproc-per-node", str(ranks), "-m", "scripts.training.worker"]
    return [sys.executable, "-m", "scripts.training.launch", *torchrun, *arguments]


def environment(threads: int) -> dict[str, str]:
    """The environment of the ranks.

    The number of threads comes from the settings, never from outside: workflow engines export the job's own number,
    and sums over another number of threads have other last digits.
    """
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": path,
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _SECONDS_TO_SAVE,
        _PARENT: str(os.getpid()),
    }


def run_ranks(
    ranks: int, threads: int, arguments: Sequence[str], log: Path, on_message: Callable[[dict[str, Any]], None]
) -> int:
    """Run the workers to their end and return torchrun's exit status.

    What the ranks and their libraries print goes to `log`; the messages that rank 0 sends (`channel`) go to
    `on_message`. SIGTERM, SIGINT and SIGUSR1 are handed on once: the ranks then save, say so and end.
    """
    with open(log, "ab") as noise:
        process = subprocess.Popen(
            command(ranks, arguments),
            env=environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            # Its own session: a Ctrl-C on the terminal reaches the launcher alone, which hands it on in order.
            start_new_session=True,
        )
        stop = _stopper(process)
        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
        threading.Thread(target=end_hung, args=(process, log.parent / "ranks"), daemon=True).start()
        try:
            for line in process.stdout:
                try:
                    message = json.loads(line)
                except ValueError:
                    noise.write(line)
                    continue
                on_message(message)
            return process.wait()
        finally:
            process.kill()
            process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)


def _stopper(process: subprocess.Popen) -> Callable:
    sent = False

    def stop(number: int, frame: object) -> None:
        nonlocal sent
        if not sent:
            sent = True
            process.terminate()

    return stop


def channel(log: Path) -> Callable[[dict[str, Any]], None]:
    """In a rank: print to `log` from here on, and return the function that sends the launcher a message."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(log, "ab") as noise:
        os.dup2(noise.fileno(), 1)
        os.dup2(noise.fileno(), 2)

    def send(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    return send


def main() -> int:
    """Be torchrun, quietly: a rank that fails has already said why."""
    # A scheduler that warns of its limit signals every process of the job. The ranks know what to do; torchrun would
    # die of it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    die_with_parent()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(sys.argv[1:])
    except (ChildFailedError, SignalException) as end:
        print(end, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
