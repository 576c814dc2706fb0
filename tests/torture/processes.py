"""Programs as the adversary starts them: with a watchdog, limits, and a measured peak of memory.

Output goes into a file, because a pipe stays open as long as any descendant lives; only where the size of files is
limited a pipe is copied into it. Processes of a project are found by
their working folder: a process whose parent was killed has another parent, but is still there.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

_LIMITED = Path(__file__).with_name("limited.py")
_LARGEST_OUTPUT = 4 << 20
_SECONDS_TO_COPY = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: its exit status; negative for the number of a signal; None if the watchdog ended it.
        output: standard output and standard error.
        peak: largest resident memory of the program and its descendants, in bytes (0 if it was not measured).
        too_large: whether it was ended because of its memory.
    """

    status: int | None
    output: str
    peak: int = 0
    too_large: bool = False

    @property
    def errors(self) -> list[str]:
        """The lines with which programs of the project report bad input."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def has_traceback(self) -> bool:
        """Whether an exception got out of a program, or the interpreter itself gave up."""
        return "Traceback (most recent call last)" in self.output or "Fatal Python error" in self.output

    def tail(self, characters: int = 1500) -> str:
        """The end of the output."""
        return self.output.strip()[-characters:]


class Program:
    """A program that has been started; `process` is that of `subprocess`."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        limits: Mapping[str, int] | None = None,
    ) -> None:
        if limits:
            command = [sys.executable, "-I", "-S", str(_LIMITED), json.dumps(dict(limits)), *command]
        self.folder = folder
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read as long as the program is known
        piped = "file_bytes" in (limits or {})
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._copying = threading.Thread(target=self._copy, daemon=True)
        if piped:
            self._copying.start()

    def _copy(self) -> None:
        for line in self.process.stdout or ():
            self._output.write(line)
            self._output.flush()

    def output(self) -> str:
        """What it has printed so far; of very much only the end."""
        if self._copying.is_alive() and self.process.poll() is not None:
            self._copying.join(_SECONDS_TO_COPY)
        size = os.fstat(self._output.fileno()).st_size
        data = os.pread(self._output.fileno(), _LARGEST_OUTPUT, max(0, size - _LARGEST_OUTPUT))
        return data.decode(errors="replace")

    def wait(self, seconds: float, memory: int | None = None) -> Outcome:
        """Wait until it ends; after `seconds`, or above `memory` bytes, it and everything in its folder is killed."""
        deadline, peak = time.monotonic() + seconds, 0
        while self.process.poll() is None:
            if memory is not None:
                peak = max(peak, _resident(self.process.pid))
            if time.monotonic() > deadline or (memory is not None and peak > memory):
                too_large = time.monotonic() <= deadline
                self.kill()
                return Outcome(None, self.output(), peak, too_large)
            time.sleep(0.02)
        return Outcome(self.process.returncode, self.output(), peak)

    def kill(self) -> None:
        """Kill it, its session, and all processes that work in its folder."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in inhabitants(self.folder):
            send(process, signal.SIGKILL)
        self.process.wait()


def run(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    seconds: float,
    memory: int | None = None,
    limits: Mapping[str, int] | None = None,
) -> Outcome:
    """Run a program to its end, see `Program.wait`."""
    return Program(command, folder, environment, limits).wait(seconds, memory)


def inhabitants(folder: Path) -> list[psutil.Process]:
    """The processes that run in `folder` or below it, without zombies."""
    inside = folder.resolve()
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(inside) and is_alive(process):
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; in a container dead ones may remain as zombies."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def send(process: psutil.Process, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def wait_until_empty(folder: Path, seconds: float) -> bool:
    """Wait until no process runs in `folder`; return whether that came true in time."""
    deadline = time.monotonic() + seconds
    while inhabitants(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _resident(pid: int) -> int:
    """Bytes of resident memory of a process and its descendants."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += each.memory_info().rss
    return total
