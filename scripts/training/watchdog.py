"""Ends a run in which a rank hangs, and tells where it hung.

A rank that waits for a dead disk, or spins in a loop, makes all others wait for it in a collective, for ever and
without a word. So every rank winds up a clock at each thing it does; one that runs down writes where all its threads
are to `ranks/<rank>.stack` and ends the process. The clock is a thread of the interpreter's own (`faulthandler`) that
needs no lock of Python's, so it works in a rank that is stuck inside a library. Only a process that the kernel holds
cannot end itself; the launcher then ends it, once another rank has given up.
"""

import faulthandler
import re
import subprocess
import time
from pathlib import Path

_SECONDS_FOR_OTHERS = 10.0
# Frames in which a rank is when it waits for another one.
_WAITING = re.compile(r"torch/distributed/|deepspeed/comm/|deepspeed/runtime/zero/")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


class Watchdog:
    """The clock of one rank, which runs down after `seconds`."""

    def __init__(self, folder: Path, rank: int, seconds: float):
        self._seconds = seconds
        self._path = stack_path(folder, rank)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "w", encoding="utf-8")

    def restart(self) -> None:
        """Wind the clock up."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def cancel(self) -> None:
        """Stop the clock."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)


def stack_path(folder: Path, rank: int) -> Path:
    """Where a rank writes its stack, below the folder of the ranks' ends."""
    return folder / f"{rank}.stack"


def hung_stacks(folder: Path) -> list[Path]:
    """The stacks of ranks that gave up, in the order in which they did."""
    found = [path for path in folder.glob("*.stack") if path.stat().st_size]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def kill_hung_ranks(process: subprocess.Popen, folder: Path) -> None:
    """Kill `process` some seconds after a rank has given up, in case another one cannot end itself.

    Run it in a thread; it returns when the process has ended.
    """
    since = None
    while process.poll() is None:
        time.sleep(0.5)
        if hung_stacks(folder):
            since = since or time.monotonic()
            if time.monotonic() - since > _SECONDS_FOR_OTHERS:
                process.kill()
                return


def hang_report(folder: Path, ranks: int) -> str | None:
    """Say which rank hung and where, or return None if none gave up."""
    stacks = {int(path.stem): path.read_text(encoding="utf-8") for path in hung_stacks(folder)}
    if not stacks:
        return None
    places = {rank: _main_thread(text) for rank, text in stacks.items()}
    frozen = [rank for rank in range(ranks) if rank not in stacks]
    stuck = [rank for rank, frames in places.items() if not any(_WAITING.search(frame) for frame in frames[:12])]
    lines = [f"rank {rank} could not even say where it is: its process is frozen" for rank in frozen]
    for rank in stuck or ([] if frozen else places):
        lines.append(f"rank {rank} hangs in (innermost first):")
        lines += [f"    {frame}" for frame in places[rank][:8]]
    lines += [f"rank {rank} waits for the others" for rank in places if stuck and rank not in stuck or frozen]
    return "\n".join([*lines, f"the stacks of all threads are in {folder}"])


def _main_thread(text: str) -> list[str]:
    """The frames of the main thread, which faulthandler writes last, innermost first."""
    last = text.rsplit("Thread 0x", 1)[-1]
    return [f"{path}:{line} {name}" for path, line, name in _FRAME.findall(last)]
