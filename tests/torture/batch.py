"""Attacks on functions of the project: a batch of them in a process of its own, which may hang or fill the memory.

    python -m tests.torture.batch KIND SEED FOLDER

The module `tests.torture.KIND` has `batch(draw, folder, report, begin)`, which calls `begin` with a description before
each attack, so that the last one is known if the process has to be ended. The report is printed as JSON.
"""

import importlib
import json
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path

from tests.torture.adversary import Report
from tests.torture.processes import run
from tests.torture.world import World
from tests.workflow.project import ROOT

_CURRENT = "current.txt"
_REPORT = "torture report: "


class BatchAttack:
    """Runs batches of a kind and watches them.

    Args:
        world: the project that is attacked.
        kind: the module in this package.
        weight: see `Attack`.
        seconds: in which a batch has to end.
        memory: bytes of resident memory that a batch may take.
    """

    def __init__(self, world: World, kind: str, weight: float, seconds: float, memory: int) -> None:
        self.weight = weight
        self._world, self._kind, self._seconds, self._memory = world, kind, seconds, memory

    def strike(self, draw: random.Random, report: Report) -> None:
        """Run one batch."""
        folder = Path(tempfile.mkdtemp(prefix=f"{self._kind}-", dir=self._world.folder))
        # The programs of the attacked project, and the tests of this one.
        environment = self._world.environment(self._world.code, TMPDIR=str(folder))
        environment["PYTHONPATH"] = f"{self._world.code}{os.pathsep}{ROOT}"
        command = [sys.executable, "-m", "tests.torture.batch", self._kind, str(draw.getrandbits(64)), str(folder)]
        outcome = run(command, folder, environment, self._seconds, self._memory)
        current = folder / _CURRENT
        last = current.read_text(errors="replace") if current.exists() else "nothing yet"
        if outcome.too_large:
            report.violation("other", f"more than {self._memory >> 20} MiB of memory, at {last}")
        elif outcome.status is None:
            report.violation("hangs", f"no end within {self._seconds:.0f} s, at {last}")
        elif _REPORT not in outcome.output:
            report.violation("tracebacks", f"ended with status {outcome.status}, at {last}: {outcome.tail()}")
        else:
            content = json.loads(outcome.output.rpartition(_REPORT)[2].partition("\n")[0])
            report.attacks += content["attacks"]
            report.outcomes.update(content["outcomes"])
            for fault, text in content["violations"]:
                report.violation(fault, text)
        self._world.remove(folder, bool(report.violations))

    def close(self) -> None:
        """Nothing is shared."""


def seen(error: BaseException) -> str:
    """An exception with the place that raised it, in a few lines."""
    return "".join(traceback.format_exception(error))[-1500:]


def main(kind: str, seed: int, folder: Path) -> None:
    """Run one batch and print its report."""
    report = Report()

    def begin(description: str) -> None:
        report.attacks += 1
        (folder / _CURRENT).write_text(description[:2000], errors="replace")

    importlib.import_module(f"tests.torture.{kind}").batch(random.Random(seed), folder, report, begin)
    violations = [[violation.fault, violation.text] for violation in report.violations]
    print(_REPORT + json.dumps({"attacks": report.attacks, "outcomes": report.outcomes, "violations": violations}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
