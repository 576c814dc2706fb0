"""The world that is attacked: a copy of the project whose whole graph has been built once, and copies of that.

Everything lies below one folder. The finished project is the reference: after an attack and the same command, every
file below the results root has to be there with the same bytes, except those of `VIEWS`.
"""

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, text_sha256
from tests.preload import client as preload
from tests.torture.processes import Outcome, Program, run
from tests.workflow.project import PARTS, ROOT, TINY, Project

RESULTS = "out"
GRAPH_SECONDS = 900.0
"""A graph that takes two minutes alone, while another attack uses the machine as well."""
STAGES = (
    *("raw", "validated", "media", "split", "records", "tokens", "plan", "blend", "bases", "models", "pixels"),
    *("features", "train", "exported", "evaluate", "report.html"),
)
"""What the graph builds below the results root, in an order in which nothing is built from something later."""
VIEWS = {
    "logs/*": "the output of programs: contains times",
    "benchmarks/*": "seconds and memory of jobs",
    "report.html": "shows the speed of training",
    "graph.json": "written anew when Snakemake starts",
    "evaluate/*/.*": "answers of an evaluation that was interrupted; its results are compared",
    "train/*/state/*/checkpoints/*": "to continue an interrupted training; the weights of finished runs are compared",
    "train/*/state/*/events/*": "TensorBoard: contains times",
    "train/*/state/*/ranks/*": "the progress of each rank, for the watchdog",
    "train/*/state/*/lock": "the number of the process that trains",
    "train/*/state/*/log.txt": "the output of the ranks",
    "train/*/state/*/throughput.json": "the speed of training",
    "train/*/state/*/metrics.jsonl": "contains times; its other values are compared",
}
"""Files below the results root whose bytes differ between two builds, and why."""
_TIMING = ("seconds", "per_second", "bytes", "utilisation")
_JOB = re.compile(r"python -m scripts\.(\w+) (.*)$")


@dataclass(frozen=True)
class Job:
    """A job of the graph: its program, and its whole command for a shell in the project's folder."""

    program: str
    command: str

    @property
    def words(self) -> list[str]:
        """The words of the command."""
        return shlex.split(self.command)

    @property
    def out(self) -> str:
        """The file or folder after `--out`."""
        return self.words[self.words.index("--out") + 1]


class World:
    """The reference and its copies below `folder`.

    Args:
        folder: for everything that is written.
        code: the project that is attacked, this one by default.
        keep: keep the copies in which something was found.
    """

    def __init__(self, folder: Path, code: Path = ROOT, keep: bool = False) -> None:
        self.folder, self.code, self.keep = folder, code, keep
        self._lock = threading.Lock()
        self._built = False
        self._hashes: dict[str, str] = {}
        self._jobs: list[Job] = []
        self._shells = preload.in_shells()
        self.build_seconds = 0.0

    def build(self) -> None:
        """Build the reference now; it is built when it is first needed otherwise."""
        with self._lock:
            if not self._built:
                self._build()

    @property
    def finished(self) -> Path:
        """The folder of the finished project, which attacks must not change."""
        self.build()
        return self.folder / "finished"

    def _build(self) -> None:
        """Build the reference, unless the folder has that of the same code already."""
        project, state = self.folder / "finished", self.folder / "finished.json"
        code = {part: _code_hash(self.code / part) for part in PARTS}
        if not state.exists() or json.loads(state.read_text())["code"] != code:
            shutil.rmtree(project, ignore_errors=True)
            started = time.monotonic()
            self._build_anew(project)
            state.write_text(json.dumps({"code": code, "seconds": time.monotonic() - started}))
        self.build_seconds = json.loads(state.read_text())["seconds"]
        self._hashes = dict(_hashed(project / RESULTS))
        self._jobs = list(self._planned(project))
        self._built = True

    def _build_anew(self, project: Path) -> None:
        copy_code(self.code, project)
        Project(project).configure(TINY)
        outcome = self.snakemake(project)
        if outcome.status != 0:
            raise UserError(f"the graph does not even build undisturbed: {outcome.tail(4000)}")

    def copy(self, kind: str) -> Path:
        """A copy of the finished project, times of modification included."""
        target = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.folder))
        shutil.copytree(self.finished, target, symlinks=True, dirs_exist_ok=True)
        return target

    def remove(self, folder: Path, found: bool = False) -> None:
        """Remove a copy, or another folder of a strike, unless something was `found` in it and is to be kept."""
        if found and self.keep:
            print(f"kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def environment(self, project: Path, preloaded: bool = False, **more: str) -> dict[str, str]:
        """Variables for commands in a copy; `preloaded`: fork interpreters from one that has imported the libraries."""
        search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PYTHONPATH": str(project), "PYTHONSAFEPATH": "1", "PATH": search, "OMP_NUM_THREADS": "1"}
        return os.environ | own | (self._shells if preloaded else {}) | more

    def snakemake_command(self, *arguments: str) -> list[str]:
        """The command with which a user builds the graph."""
        command = [sys.executable, "-m", "snakemake", "--configfile", "tiny.yaml", "--cores", "2", "--nocolor"]
        return [*command, *arguments]

    def start_snakemake(self, project: Path, preloaded: bool = True) -> Program:
        """Start to build the graph of a copy."""
        return Program(self.snakemake_command(), project, self.environment(project, preloaded))

    def snakemake(self, project: Path, *arguments: str, preloaded: bool = True) -> Outcome:
        """Build the graph of a copy."""
        environment = self.environment(project, preloaded)
        return run(self.snakemake_command(*arguments), project, environment, GRAPH_SECONDS)

    def shell(
        self, project: Path, command: str, seconds: float, preloaded: bool = False, limits: dict[str, int] | None = None
    ) -> Outcome:
        """Run the command of a job in a copy."""
        environment = self.environment(project, preloaded, TMPDIR=str(project))
        return run(["bash", "-c", command], project, environment, seconds, limits=limits)

    def jobs(self) -> list[Job]:
        """All jobs of the graph that run a program."""
        return self._jobs if self.finished else []

    def reference(self) -> dict[str, str]:
        """sha256 of every file below the finished results root that two builds have in common, by path."""
        return self._hashes if self.finished else {}

    def differences(self, project: Path, below: str = "") -> list[str]:
        """What differs between the results of a copy and the reference; `below`: only files with this beginning."""
        found = dict(_hashed(project / RESULTS))
        expected = {path: sha256 for path, sha256 in self.reference().items() if path.startswith(below)}
        problems = [f"{path} is missing" for path in expected if path not in found]
        problems += [f"{path} differs" for path, sha256 in expected.items() if found.get(path, sha256) != sha256]
        return problems

    def leftovers(self, project: Path) -> list[str]:
        """Files below the results root of a copy that the undisturbed build does not have."""
        return sorted(path for path, _ in _hashed(project / RESULTS) if path not in self.reference())

    def _planned(self, project: Path) -> Iterator[Job]:
        output = self.snakemake(project, "-n", "-p", "--forceall").output
        for line in output.splitlines():
            command = line.removeprefix("Shell command:").strip()
            if found := _JOB.search(command):
                yield Job(found[1], command)


def copy_code(code: Path, target: Path) -> None:
    """Copy what a project needs to run into the new folder `target`."""
    target.mkdir()
    for part in PARTS:
        if (code / part).is_dir():
            shutil.copytree(code / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(code / part, target / part)


def _code_hash(path: Path) -> str:
    """Hash of a file, or of all files of a folder."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if "__pycache__" not in each.parts)
    return text_sha256("".join(file_sha256(each) for each in files if each.is_file()))


def view(path: str) -> str:
    """Why the bytes of a file below the results root may differ between two builds, or ""."""
    return next((reason for pattern, reason in VIEWS.items() if fnmatchcase(path, pattern)), "")


def stem(path: str) -> str:
    """The kind of a file: its path without what only counts."""
    return re.sub(r"[0-9a-f]{12,}|\d+", "N", path)


def _hashed(root: Path) -> Iterator[tuple[str, str]]:
    """Path below `root` and hash of every file that is no view, and of the values of metrics."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or any(part.is_symlink() for part in [path, *path.parents]):
            continue
        if path.name == "metrics.jsonl" and path.parent.parent.name == "state":
            yield name, _metrics(path)
        elif not view(name):
            yield name, file_sha256(path)


def _metrics(path: Path) -> str:
    """The metrics of a run without what only a clock decides."""
    try:
        lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError:
        return file_sha256(path)
    return json.dumps([{key: value for key, value in line.items() if not key.endswith(_TIMING)} for line in lines])
