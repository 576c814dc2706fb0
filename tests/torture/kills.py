"""Kills: the graph is started from any state, killed at random moments, and finished by the same command.

Afterwards every result has the bytes of the undisturbed build, and no temporary file is left. Nothing is done by hand
but what the documentation asks for: the lock of a Snakemake that is dead is removed (`scripts.workflow.unlock`).
"""

import random
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.torture.adversary import Report
from tests.torture.processes import Program, inhabitants, run, send, wait_until_empty
from tests.torture.world import GRAPH_SECONDS, RESULTS, STAGES, World

WAYS = {
    "tree, SIGKILL": 4,
    "Snakemake alone, SIGKILL": 2,
    "Snakemake, SIGTERM": 1,
    "everything, SIGINT": 1,
    "everything, SIGTERM": 1,
    "one process, SIGKILL": 2,
    "one process, SIGTERM": 1,
}
"""What is killed with which signal, and how often, relative to the others."""
_SECONDS_TO_END = 300.0


class Kills:
    """See the top of the file."""

    weight = 5.0

    def __init__(self, world: World) -> None:
        self._world = world

    def strike(self, draw: random.Random, report: Report) -> None:
        """Begin somewhere, kill up to four times, finish, compare."""
        project = self._world.copy("kills")
        cut = draw.randrange(len(STAGES))
        for stage in STAGES[cut:]:
            remove(project / RESULTS / stage)
        preloaded = draw.random() < 0.7
        history = [f"without {', '.join(STAGES[cut:])}"]
        for _ in range(draw.randint(1, 4)):
            # Later moments than the end of the graph are of no use; most of the time goes into the last stages.
            longest = self._world.build_seconds * (1 - 0.6 * cut / len(STAGES)) * (1 if preloaded else 2)
            program, moment = self._world.start_snakemake(project, preloaded), draw.uniform(0, longest)
            way = draw.choices(list(WAYS), list(WAYS.values()))[0]
            if not self._wait(program, moment):
                history.append("ended before it was killed")
                break
            history.append(f"{way} after {moment:.1f} s")
            self._kill(draw, way, program, project)
            report.attacks += 1
            report.note(way)
            if not self._ended(program, project):
                report.violation("hangs", f"{'; '.join(history)}: processes go on for {_SECONDS_TO_END:.0f} s")
                program.kill()
                break
            self._unlock(project)
        self._finish(project, preloaded, "; ".join(history), report)
        self._world.remove(project, bool(report.violations))

    def close(self) -> None:
        """Nothing is shared."""

    def _wait(self, program: Program, seconds: float) -> bool:
        """Wait until the moment has come; return whether the program still runs."""
        deadline = time.monotonic() + seconds
        while program.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return program.process.poll() is None

    def _kill(self, draw: random.Random, way: str, program: Program, project: Path) -> None:
        victims, _, name = way.partition(", ")
        number = signal.Signals[name]
        running = inhabitants(project)
        if victims.startswith("Snakemake"):
            program.process.send_signal(number)
        elif victims == "one process":
            others = [process for process in running if process.pid != program.process.pid]
            for process in draw.sample(others, min(1, len(others))):
                send(process, number)
        else:
            for process in draw.sample(running, len(running)):
                send(process, number)

    def _ended(self, program: Program, project: Path) -> bool:
        """Wait for the end of what was not killed: jobs end by themselves, and Snakemake after them."""
        deadline = time.monotonic() + _SECONDS_TO_END
        while program.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return wait_until_empty(project, max(1.0, deadline - time.monotonic()))

    def _unlock(self, project: Path) -> None:
        command = [sys.executable, "-m", "scripts.workflow.unlock"]
        run(command, project, self._world.environment(project), GRAPH_SECONDS)

    def _finish(self, project: Path, preloaded: bool, history: str, report: Report) -> None:
        outcome = self._world.snakemake(project, preloaded=preloaded)
        if outcome.status is None:
            report.violation("hangs", f"{history}: the same command does not end")
        elif outcome.status:
            report.violation("lost", f"{history}: the same command fails: {outcome.tail()}")
        else:
            if problems := self._world.differences(project):
                report.violation("differences", f"{history}: {problems[:5]}")
            if left := self._world.leftovers(project):
                report.violation("other", f"{history}: files that are not removed: {left[:5]}")
        if outcome.has_traceback:
            report.violation("tracebacks", f"{history}: {outcome.tail()}")


def remove(path: Path) -> None:
    """Remove a file or folder that may not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
