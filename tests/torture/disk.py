"""Disk and limits: every program on a full disk, with a limit on files, and where it may not write.

A program that cannot write ends with exit status 1 and one line; once there is room, the same command makes the same
files, and nothing half-written is left.
"""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.torture.adversary import Report
from tests.torture.kills import remove
from tests.torture.processes import Outcome, run
from tests.torture.world import Job, World

JOB_SECONDS = 300.0
_DISK_BYTES = 256 << 20
WAYS = ("full disk", "full disk", "read-only disk", "read-only folder", "file size", "open files")


class Disk:
    """See the top of the file."""

    weight = 3.0

    def __init__(self, world: World) -> None:
        self._world = world

    def strike(self, draw: random.Random, report: Report) -> None:
        """Run one job under one restriction, and then without it."""
        programs = sorted({job.program for job in self._world.jobs()})
        program = draw.choice(programs)
        job = draw.choice([job for job in self._world.jobs() if job.program == program])
        way = draw.choice(WAYS)
        with self._restricted(draw, way, report) as (project, restrict, limits):
            if project is None:
                report.note(f"{way} (not possible on this machine)")
                return
            self._attack(job, way, project, restrict, limits, report)

    def close(self) -> None:
        """Nothing is shared."""

    def _attack(
        self,
        job: Job,
        way: str,
        project: Path,
        restrict: Callable[[bool], None],
        limits: dict[str, int],
        report: Report,
    ) -> None:
        report.attacks += 1
        # Where several jobs write into one folder, the files of the others stay.
        shared = any(other.out == job.out for other in self._world.jobs() if other is not job)
        if not shared:
            remove(project / job.out)
        restrict(True)
        outcome = self._world.shell(project, job.command, JOB_SECONDS, limits=limits)
        restrict(False)
        what = f"{job.program} ({way}{f' {limits}' if limits else ''}, {job.command})"
        if judge(outcome, what, report) == "succeeded":
            report.note("succeeded all the same")
        again = self._world.shell(project, job.command, JOB_SECONDS)
        if again.status != 0:
            report.violation("lost", f"{what}: the same command fails afterwards: {again.tail()}")
            return
        below = job.out.partition("/")[2]
        # Other jobs write into some of these folders as well; what they would add is missing.
        if problems := [line for line in self._world.differences(project, below) if line.endswith("differs")]:
            report.violation("differences", f"{what}: {problems[:5]}")
        if left := self._world.leftovers(project):
            report.violation("other", f"{what}: files that are not removed: {left[:5]}")

    @contextmanager
    def _restricted(self, draw: random.Random, way: str, report: Report) -> Iterator[tuple]:
        """A copy of the project, a function that begins and ends the restriction, and limits for the program."""
        limits: dict[str, int] = {}
        if way == "file size":
            limits["file_bytes"] = draw.choice((0, 100, 4096, 40_000, 200_000))
        elif way == "open files":
            limits["open_files"] = draw.choice((12, 16, 24, 40))
        elif way == "read-only folder":
            limits["permissions"] = 1
        if way.endswith("disk"):
            with self._mounted() as disk:
                if disk is None:
                    yield None, None, limits
                    return
                project = Path(shutil.copytree(self._world.finished, disk / "project", symlinks=True))
                free = draw.choice((0, 0, 4096, 40_000, 200_000))
                yield project, _filled(disk, free) if way == "full disk" else _read_only(disk), limits
            return
        project = self._world.copy("disk")
        try:
            yield project, _closed(project) if way == "read-only folder" else lambda begin: None, limits
        finally:
            self._world.remove(project, bool(report.violations))

    @contextmanager
    def _mounted(self) -> Iterator[Path | None]:
        """A file system that lies in memory; None where that is not allowed."""
        disk = Path(tempfile.mkdtemp(prefix="disk-", dir=self._world.folder))
        command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True)
        try:
            yield None if done.returncode else disk
        finally:
            if not done.returncode:
                subprocess.run(["umount", "--lazy", str(disk)])
            disk.rmdir()


def judge(outcome: Outcome, what: str, report: Report) -> str:
    """Whether a program that met bad input or a limit ended as promised: "refused", "succeeded", or "" (reported)."""
    if outcome.status is None:
        report.violation("hangs", f"{what}: no end: {outcome.tail()}")
    elif outcome.has_traceback:
        report.violation("tracebacks", f"{what}: {outcome.tail()}")
    elif outcome.status == 0:
        return "succeeded"
    elif outcome.status == 1 and len(outcome.errors) == 1:
        report.note("refused in one line")
        return "refused"
    else:
        report.violation("other", f"{what}: status {outcome.status}, not one line of error: {outcome.tail()}")
    return ""


def _filled(disk: Path, free: int) -> Callable[[bool], None]:
    """Fill a file system but for `free` bytes, and empty it again."""
    ballast = disk / "ballast"

    def restrict(begin: bool) -> None:
        if not begin:
            ballast.unlink()
            return
        state = os.statvfs(disk)
        # Written, not reserved: a sparse file takes no room.
        with ballast.open("wb") as file:
            left = max(0, state.f_bavail * state.f_frsize - free)
            while left > 0:
                left -= file.write(bytes(min(left, 1 << 20)))

    return restrict


def _read_only(disk: Path) -> Callable[[bool], None]:
    def restrict(begin: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if begin else 'rw'}", str(disk)], check=True)

    return restrict


def _closed(project: Path) -> Callable[[bool], None]:
    """Take the right to write in a folder."""

    def restrict(begin: bool) -> None:
        done = run(["chmod", "-R", "a-w" if begin else "u+w", "."], project, os.environ, JOB_SECONDS)
        if done.status:
            raise RuntimeError(done.output)

    return restrict
