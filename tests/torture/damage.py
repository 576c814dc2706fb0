"""Damage: one file of the finished results is flipped, cut or removed.

A flipped byte keeps the size and the time of modification, as bit rot does. Then, by turns:

    verify    `python -m scripts.verify` names the file
    reader    a program that reads the file refuses it by name, or was not concerned: its results are the same
    repair    `python -m scripts.verify --repair` and the same snakemake command give the same bytes back, and no job
              is run that has nothing to do with the file; what is missing needs the same command alone
"""

import os
import random
import re
import sys
from pathlib import Path

from tests.torture.adversary import Report
from tests.torture.disk import JOB_SECONDS, judge
from tests.torture.kills import remove
from tests.torture.processes import Outcome, run
from tests.torture.world import RESULTS, Job, World, stem, view

WAYS = {"flipped": 6, "cut": 1, "removed": 2}
WITHOUT_EFFECT = {
    "configuration.json": "names the configuration; another name is refused when Snakemake starts",
}
"""Files whose damage changes no result, besides those of `world.VIEWS`, and why."""
_TRAINING = {"train_run", "pretrain", "encode_images"}
_MOST_JOBS = 12


class Damage:
    """See the top of the file."""

    weight = 4.0

    def __init__(self, world: World) -> None:
        self._world = world

    def strike(self, draw: random.Random, report: Report) -> None:
        """Damage one file of a random kind, and see what notices it."""
        project = self._world.copy("damage")
        name = self._choose(draw, project / RESULTS)
        way = draw.choices(list(WAYS), list(WAYS.values()))[0]
        what = f"{name} {self._damage(draw, way, project / RESULTS / name)}"
        report.attacks += 1
        report.note(way)
        harmless = view(name) or WITHOUT_EFFECT.get(name, "")
        if way == "removed":
            self._rebuild(project, name, what, report)
        else:
            found = self._verify(project, name, what, bool(harmless), report)
            # The lock file records what is there; whether that is what was made, `verify` says by the steps' records.
            consumers = [job for job in self._world.jobs() if job.program != "lock" and reads(job, name)]
            if consumers and draw.random() < 0.5:
                self._read(project, name, what, draw.choice(consumers), report)
            elif found:
                self._repair(project, name, what, report)
            elif harmless:
                self._rebuild(project, name, what, report)
        self._world.remove(project, bool(report.violations))

    def close(self) -> None:
        """Nothing is shared."""

    def _choose(self, draw: random.Random, root: Path) -> str:
        """A file below the results root, so that every kind of file is equally likely."""
        kinds: dict[str, list[str]] = {}
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and path.stat().st_size and not any(each.is_symlink() for each in [path, *path.parents]):
                # Files of code in an exported folder are one kind, as those of a run are.
                kind = re.sub(r"\w+\.py$", "N.py", stem(name))
                kinds.setdefault(re.sub(r"^(logs/\w+).*", r"\1", kind), []).append(name)
        return draw.choice(kinds[draw.choice(sorted(kinds))])

    def _damage(self, draw: random.Random, way: str, path: Path) -> str:
        """Damage a file; return what was done."""
        before = path.stat()
        if way == "removed":
            path.unlink()
            return "is removed"
        data = bytearray(path.read_bytes())
        at = draw.randrange(len(data))
        if way == "cut":
            del data[at:]
        else:
            data[at] ^= 1 << draw.randrange(8)
        # In place: the file keeps its inode, as on a disk that rots.
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return f"is {way} at byte {at} of {before.st_size}"

    def _verify(self, project: Path, name: str, what: str, harmless: bool, report: Report) -> bool:
        """Whether the check of all hashes names the file."""
        outcome = self._scripts_verify(project)
        if outcome.status is None:
            report.violation("hangs", f"verify, {what}")
        elif outcome.has_traceback:
            report.violation("tracebacks", f"verify, {what}: {outcome.tail()}")
        elif outcome.status == 1 and f"{RESULTS}/{name}" in outcome.output:
            report.note("found by verify")
            return True
        elif harmless:
            report.note("without effect")
        else:
            report.violation("lost", f"verify does not find that {what}: {outcome.tail(500)}")
        return False

    def _scripts_verify(self, project: Path, *arguments: str) -> Outcome:
        command = [sys.executable, "-m", "scripts.verify", "--root", RESULTS, *arguments]
        return run(command, project, self._world.environment(project), JOB_SECONDS)

    def _read(self, project: Path, name: str, what: str, job: Job, report: Report) -> None:
        """Run a program that reads the file, anew."""
        if not f"{RESULTS}/{name}".startswith(job.out):
            remove(project / job.out)
        outcome = self._world.shell(project, job.command, JOB_SECONDS, preloaded=True)
        result = judge(outcome, f"{job.program} reads: {what}", report)
        below = job.out.partition("/")[2]
        if result == "refused":
            report.note("refused by its reader")
            parts = {Path(name).name, Path(name).parent.name, Path(name).name.split(".")[0]}
            if not any(part in outcome.errors[0] for part in parts):
                report.violation("other", f"{job.program} reads: {what}, and does not name it: {outcome.errors[0]}")
        elif result == "succeeded":
            found = [line for line in self._world.differences(project, below) if line.endswith("differs")]
            if found := [line for line in found if not line.startswith(f"{name} ")]:
                text = f"{job.program} reads: {what}, and makes other results: {found[:5]}"
                report.violation("differences", text)
            else:
                report.note("not used by its reader")

    def _repair(self, project: Path, name: str, what: str, report: Report) -> None:
        outcome = self._scripts_verify(project, "--repair")
        if outcome.has_traceback or outcome.status is None or "unrecognized arguments" in outcome.output:
            report.violation("tracebacks", f"verify --repair, {what}: {outcome.tail()}")
            return
        self._rebuild(project, name, what, report)

    def _rebuild(self, project: Path, name: str, what: str, report: Report) -> None:
        """The same command gives the file back, with no job that has nothing to do with it."""
        outcome = self._world.snakemake(project)
        # A view may stay as it is, or be gone.
        problems = [
            line for line in self._world.differences(project) if not (view(name) and line.startswith(f"{name} "))
        ]
        jobs = re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", outcome.output)
        if outcome.status is None:
            report.violation("hangs", f"snakemake after {what}")
        elif outcome.status or outcome.has_traceback:
            report.violation("lost", f"snakemake after {what}: {outcome.tail()}")
        elif problems:
            report.violation("differences", f"after {what} and snakemake: {problems[:5]}")
        else:
            report.note("the same bytes again")
            trained = _TRAINING & set(jobs)
            own = name.startswith(("train/", "bases/", "features/"))
            if (trained and not own) or len(jobs) > _MOST_JOBS:
                report.violation("other", f"after {what}, too much runs again: {jobs}")
        if left := self._world.leftovers(project):
            report.violation("other", f"after {what}: files that are not removed: {left[:5]}")


def reads(job: Job, name: str) -> bool:
    """Whether the command of a job names a file below the results root, its folder or its manifest as an input."""
    path, previous = f"{RESULTS}/{name}", ""
    for word in job.words:
        place = word.partition("=")[2] or word
        inside = (f"{place}/", f"{place.removesuffix('.json')}.")
        is_input = previous not in ("--out", "--root", "--data-path") and place.startswith(f"{RESULTS}/")
        if is_input and (path == place or path.startswith(inside)):
            return True
        previous = word
    return False
