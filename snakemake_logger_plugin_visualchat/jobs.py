"""What is known of a run of the graph: the jobs of each stage, those that run, and how far each of them is.

The progress of a job is read from its log file: every ten seconds programs write a line such as
`training mmca:  21% 512/2502 [01:20<05:10,  6.40it/s, loss 0.53]` (`scripts/common/progress.py`).
"""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

STAGES = {
    "raw files": ("miniature", "fetch", "select_subset", "validate_source", "validate_dataset"),
    "images": ("shard", "media_index", "preprocess_images", "encode_images", "holdout"),
    "conversations": ("convert", "count_tokens"),
    "blends": ("plan", "blend", "blend_manifest", "preview"),
    "models": ("pretrain_tokenizer", "pretrain_vision", "pretrain_language", "make_model", "replay"),
    "training": ("train_run", "export"),
    "evaluation": ("evaluate_run", "forgetting"),
    "report": ("lock", "report_page"),
}
"""The stages of the graph in their order, each with its rules."""

STAGE_OF = {rule: stage for stage, rules in STAGES.items() for rule in rules}

_PROGRESS = re.compile(
    r"^.+: +(?P<percent>\d+)% (?P<done>\S+)/(?P<total>\S+) \[[\d:]+<(?P<left>[\d:?]+), +[^,\]]+(?:, (?P<note>.*))?\]$"
)
_TAIL_BYTES = 4096
_NOTES_BYTES = 1 << 20
_MESSAGE_LINES = 12


@dataclass(frozen=True)
class Progress:
    """How far a job is, by its log: the share that is done, items, seconds left, and a note such as a loss."""

    share: float
    items: str
    left: float
    note: str


@dataclass
class Job:
    """One job that runs. `log` is the file that its program writes to, if it has one."""

    rule: str
    title: str
    log: Path | None
    started: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108 (tests set the clock)
    log_size: int = 0
    """Bytes that earlier runs have left in the log."""

    def __post_init__(self) -> None:
        if self.log and self.log.is_file():
            self.log_size = self.log.stat().st_size

    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    def progress(self) -> Progress | None:
        """The progress of the job, if its log contains one; times are of its last line, ten seconds old at most."""
        for line in reversed(tail(self.log)):
            if match := _PROGRESS.match(line):
                items = f"{_grouped(match['done'])} of {_grouped(match['total'])}"
                share = int(match["percent"]) / 100
                return Progress(share, items, _seconds(match["left"]), match["note"] or "") if share < 1 else None
        return None

    def notes(self) -> list[str]:
        """The lines of its log that a person should read at once: those that begin with NOTE."""
        if self.log is None or not self.log.is_file():
            return []
        with self.log.open("rb") as file:
            file.seek(self.log_size if self.log_size <= self.log.stat().st_size else 0)
            lines = file.read(_NOTES_BYTES).decode(errors="replace").splitlines()
        return [line for line in lines if line.startswith("NOTE: ")]


def _grouped(count: str) -> str:
    """A count with its thousands set apart; one in another form (5.00G) as it is."""
    return f"{int(count):,}" if count.isdigit() else count


def _seconds(clock: str) -> float:
    """Seconds of a time such as 1:02:03; 0 where it is not known (?)."""
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part) if part.isdigit() else 0
    return float(total)


@dataclass
class Stage:
    """The jobs of one stage: how many there are, how many are done, and when its first one began."""

    name: str
    total: int
    done: int = 0
    started: float | None = None
    ended: float | None = None

    def seconds(self) -> float:
        """Seconds from the beginning of its first job to the end of its last one, or to now."""
        if self.started is None:
            return 0.0
        return (time.monotonic() if self.ended is None else self.ended) - self.started


class Run:
    """The jobs of a run, as Snakemake reports them."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.stages: dict[str, Stage] = {}
        self.running: dict[int, Job] = {}
        self._stage_of_job: dict[int, str] = {}

    def plan(self, jobs: dict[str, int]) -> None:
        """Take the number of jobs of each rule. Target rules run nothing and are left out."""
        for name, rules in STAGES.items():
            if count := sum(jobs.get(rule, 0) for rule in rules):
                self.stages[name] = Stage(name, count)

    def start(self, number: int, job: Job) -> None:
        """A job begins."""
        if (name := STAGE_OF.get(job.rule)) in self.stages:
            self._stage_of_job[number] = name
            self.running[number] = job
            if self.stages[name].started is None:
                self.stages[name].started = job.started

    def finish(self, number: int) -> Stage | None:
        """A job has succeeded; returns its stage if that was the last one of it."""
        self.running.pop(number, None)
        if number not in self._stage_of_job:
            return None
        stage = self.stages[self._stage_of_job.pop(number)]
        stage.done += 1
        if stage.done < stage.total:
            return None
        stage.ended = time.monotonic()
        return stage

    def fail(self, number: int) -> None:
        """A job has failed; it may begin again."""
        self.running.pop(number, None)

    @property
    def total(self) -> int:
        """All jobs of the run."""
        return sum(stage.total for stage in self.stages.values())

    @property
    def done(self) -> int:
        """Jobs that are finished."""
        return sum(stage.done for stage in self.stages.values())

    def jobs_of(self, stage: Stage) -> list[Job]:
        """The jobs of a stage that run now, the one that began first at the front."""
        return [job for number, job in self.running.items() if self._stage_of_job[number] == stage.name]


def tail(path: Path | None) -> list[str]:
    """The last lines of a file; none where it is not there yet."""
    if path is None or not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()


def last_message(path: Path | None) -> list[str]:
    """What a program that failed wrote last: from its error message or traceback on, without progress."""
    lines = [line for line in tail(path) if line.strip() and not _PROGRESS.match(line)]
    starts = [i for i, line in enumerate(lines) if line.startswith(("error:", "Traceback "))]
    return lines[starts[-1] if starts else 0 :][-_MESSAGE_LINES:]
