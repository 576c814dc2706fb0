"""How a run is shown: a bar for each stage on a terminal, elsewhere a plain line now and then."""

import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from snakemake_logger_plugin_visualchat.jobs import Run, Stage

_FIRST_PAUSE = 20.0
"""Seconds without news after which a plain line is printed; it grows with the run, so that a long one prints no more
than a few dozen."""
_NOTE_WIDTH = 48


class Bars:
    """A bar for each stage, redrawn on a terminal. Its last state stays on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", justify="right"),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        self._bars = Progress(*columns, console=console, refresh_per_second=2)

    def begin(self, run: Run) -> None:
        """Show a bar for each stage."""
        for stage in run.stages.values():
            self._tasks[stage.name] = self._bars.add_task(stage.name, total=stage.total, count="", note="")
        self._bars.start()
        self.update(run)

    def update(self, run: Run) -> None:
        """Show how far every stage is; called about once a second."""
        for stage in run.stages.values():
            part, note = state_of(stage, run)
            task, count = self._tasks[stage.name], f"{stage.done}/{stage.total}"
            self._bars.update(task, completed=stage.done + part, count=count, note=note[:_NOTE_WIDTH])

    def stage_done(self, stage: Stage, run: Run) -> None:
        """Show that a stage is finished."""
        self.update(run)

    def print(self, text: str) -> None:
        """Print lines above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self, run: Run) -> None:
        """Leave the last state of the bars on the terminal."""
        if self._tasks:
            self.update(run)
            self._bars.stop()


class Lines:
    """Plain lines: one as a stage ends, and one when nothing was printed for a while."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._printed = time.monotonic()

    def begin(self, run: Run) -> None:
        """Print how many jobs each stage has."""
        stages = ", ".join(f"{stage.name} {stage.total}" for stage in run.stages.values())
        self.print(f"{run.total} jobs: {stages}")

    def update(self, run: Run) -> None:
        """Print how far the run is, if nothing was printed for a while."""
        now = time.monotonic()
        if not run.running or now - self._printed < max(_FIRST_PAUSE, (now - run.started) / 4):
            return
        stage = next(stage for stage in run.stages.values() if run.jobs_of(stage))
        self.print(f"{_head(run)}  {stage.name} {stage.done}/{stage.total}: {state_of(stage, run)[1]}")

    def stage_done(self, stage: Stage, run: Run) -> None:
        """Print that a stage is finished."""
        self.print(f"{_head(run)}  {stage.name} {stage.done}/{stage.total}: {state_of(stage, run)[1]}")

    def print(self, text: str) -> None:
        """Print lines."""
        print(text, file=self._stream, flush=True)
        self._printed = time.monotonic()

    def close(self, run: Run) -> None:
        """Nothing to do: every line is printed already."""


def state_of(stage: Stage, run: Run) -> tuple[float, str]:
    """How far the running jobs of a stage are, in jobs, and a note: what runs or how far it is, and the time left."""
    if stage.ended is not None:
        return 0.0, f"done in {clock(stage.seconds())}"
    jobs = run.jobs_of(stage)
    if not jobs:
        return 0.0, "waiting" if stage.started is None else ""
    part, note, left = 0.0, "", 0.0
    for job in jobs:
        if progress := job.progress():
            part += progress.share
            note = ", ".join(filter(None, (progress.items, progress.note)))
            left = max(left, progress.left)
    if stage.total > len(jobs) and stage.done:
        # With many jobs in a stage, its rate so far is a better estimate than one job's.
        left = stage.seconds() * (stage.total - stage.done - part) / (stage.done + part)
    note = note or jobs[0].title
    return part, f"{note}, {clock(left)} left" if left >= 1 else note


def _head(run: Run) -> str:
    return f"{clock(time.monotonic() - run.started):>7} {100 * run.done // max(run.total, 1):>3}%"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours too: 1:05, 2:00:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
