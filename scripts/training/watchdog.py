"""Ends a run in which a rank hangs, and reports where it hung.

A rank that waits for a dead disk, or loops endlessly, makes all others wait for it in a collective, indefinitely and
with no message. So every rank resets a timer whenever it makes progress; one that expires writes the stacks of all
threads to `ranks/<rank>.stack` and ends the process. The timer is a thread of the interpreter (`faulthandler`) that
needs none of Python's locks, so it works in a rank that is stuck inside a library. Only a process that is frozen in the
kernel cannot end itself; the launcher kills it, once another rank has timed out.
"""

import faulthandler
import re
import subprocess
import time
from pathlib import Path

_SECONDS_FOR_OTHERS = 10.0
# Code that a rank is in while it waits for another one.
_WAITING = re.compile(r"torch/distributed/|deepspeed/comm/|deepspeed/runtime/zero/")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


class Watchdog:
    """The timer of one rank, which expires after `seconds` without progress."""

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self._seconds = seconds
        self._path = stack_path(folder, rank)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Open as long as the timer may expire, in a process that may be unable to open files by then.
        self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115 - closed by `cancel`

    def restart(self) -> None:
        """Reset the timer: there was progress."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def cancel(self) -> None:
        """Stop the timer."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)


def stack_path(folder: Path, rank: int) -> Path:
    """The file into which a rank that times out writes its stacks."""
    return folder / f"{rank}.stack"


def hung_stacks(folder: Path) -> list[Path]:
    """The stack files of the ranks that timed out, in the order in which they did."""
    found = [path for path in folder.glob("*.stack") if path.stat().st_size]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def kill_hung_ranks(process: subprocess.Popen, folder: Path) -> None:
    """Kill `process` some seconds after a rank has timed out, in case another one cannot end itself.

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
    """Which of `ranks` ranks hung and where, as text; None if none timed out."""
    stacks = {int(path.stem): path.read_text(encoding="utf-8") for path in hung_stacks(folder)}
    if not stacks:
        return None
    frames = {rank: _main_thread(text) for rank, text in stacks.items()}
    frozen = [rank for rank in range(ranks) if rank not in stacks]
    stuck = [rank for rank in frames if not any(_WAITING.search(frame) for frame in frames[rank][:12])]
    if not frozen and not stuck:
        stuck = list(frames)
    lines = [f"rank {rank} wrote no stack: its process is frozen" for rank in frozen]
    for rank in stuck:
        lines.append(f"rank {rank} hangs in (innermost first):")
        lines += [f"    {frame}" for frame in frames[rank][:8]]
    lines += [f"rank {rank} waits for the others" for rank in frames if rank not in stuck]
    return "\n".join([*lines, f"the stacks of all threads are in {folder}"])


def _main_thread(text: str) -> list[str]:
    """The frames of the main thread, which faulthandler writes last, innermost first."""
    last = text.rsplit("Thread 0x", 1)[-1]
    return [f"{path}:{line} {name}" for path, line, name in _FRAME.findall(last)]
