"""Snakemake's output for people: `snakemake --logger visualchat` shows the stages of the graph, how far each is and what failed.

Snakemake finds a logger plugin as a package of this name on the path: `make demo` puts the project there, and `python -m
snakemake` does in the project's folder. What programs print goes to their log files alone, because VISUALCHAT_LOG_ONLY is set for
them (`scripts/workflow/targets.py`). Snakemake's own complete log lies below `.snakemake/log` as always.

With -n, -p, --quiet, --verbose or --debug-dag the output is Snakemake's own.
"""

import logging
import os
import sys
import threading
from pathlib import Path

from rich.console import Console
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_visualchat.jobs import Job, Run, last_message
from snakemake_logger_plugin_visualchat.screen import Bars, Lines, clock

# Snakemake's further messages about a job whose failure is shown already.
_SAID_BY_A_FAILURE = (
    "CalledProcessError in file",
    "Exiting because a job execution failed",
    "At least one job did not complete successfully",
)


class LogHandler(LogHandlerBase):
    """Shows a run; one instance for each call of Snakemake."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        wanted = self.common_settings
        stream = sys.stdout if wanted.stdout else sys.stderr
        self._snakemakes_own: logging.Handler | None = None
        if wanted.dryrun or wanted.printshellcmds or wanted.quiet or wanted.verbose or wanted.debug_dag:
            everything = (wanted.quiet, wanted.debug_dag, wanted.verbose, wanted.dryrun, wanted.printshellcmds)
            formatter = DefaultFormatter(wanted.quiet, wanted.show_failed_logs)
            self._snakemakes_own = ColorizingTextHandler(wanted.nocolor, stream, formatter, DefaultFilter(*everything))
            return
        os.environ["VISUALCHAT_LOG_ONLY"] = "1"
        console = Console(file=stream, no_color=wanted.nocolor)
        self._run = Run()
        self._screen = Bars(console) if console.is_terminal else Lines(stream)
        self._stopped = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="screen", daemon=True)
        self._clock.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Show what matters of a record; called by one thread at a time."""
        try:
            if self._snakemakes_own is not None:
                self._snakemakes_own.handle(record)
            else:
                self._show(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._snakemakes_own is None and not self._stopped.is_set():
            self._stopped.set()
            self._clock.join()
            self._screen.close(self._run)
        super().close()

    def _show(self, record: logging.LogRecord) -> None:
        match getattr(record, "event", None):
            case LogEvent.RUN_INFO if not self._run.stages:
                self._run.plan(record.stats)
                self._screen.begin(self._run)
            case LogEvent.JOB_INFO:
                title = record.rule_msg or record.rule_name
                self._run.start(record.jobid, Job(record.rule_name, title, _first(record.log)))
            case LogEvent.JOB_FINISHED:
                if ended := self._run.finish(record.job_id):
                    self._screen.stage_done(ended, self._run)
            case LogEvent.JOB_ERROR:
                self._show_failure(record)
            case LogEvent.GROUP_ERROR | LogEvent.ERROR | None:
                text = record.getMessage()
                if record.levelno >= logging.WARNING or "Nothing to be done" in text:
                    if not any(known in text for known in _SAID_BY_A_FAILURE):
                        self._screen.say(text)

    def _show_failure(self, record: logging.LogRecord) -> None:
        """Say which job failed, what its program wrote last, and where all of that stands."""
        job, log = self._run.running.get(record.jobid), _first(record.log)
        self._run.fail(record.jobid)
        after = f" after {clock(job.age())}" if job else ""
        lines = [f"FAILED{after}: {job.title if job else record.rule_name} (rule {record.rule_name})"]
        lines += [f"  {line}" for line in last_message(log)]
        lines += [f"  log: {log}"] if log else []
        self._screen.say("\n".join(lines))

    def _tick(self) -> None:
        while not self._stopped.wait(1.0):
            with self.lock:
                if self._run.stages:
                    self._screen.update(self._run)


def _first(logs: list[str]) -> Path | None:
    return Path(logs[0]) if logs else None
