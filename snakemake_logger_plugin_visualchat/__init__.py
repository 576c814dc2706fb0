"""A logger plugin of Snakemake, `--logger visualchat`: the stages of the graph, how far each is, and what failed.

Snakemake finds a logger plugin as a package of this name on the path: `make demo` puts the project there, and
`python -m snakemake` does in the project's folder. What programs print goes to their log files alone, because
VISUALCHAT_LOG_ONLY is set for them (`scripts/workflow/targets.py`). Snakemake's own complete log is below
`.snakemake/log`.

With -n, -p, --quiet, --verbose or --debug-dag the output is that of Snakemake itself.
"""

import logging
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_visualchat.jobs import Job, Run, last_message
from snakemake_logger_plugin_visualchat.screen import Bars, Lines, clock

# Snakemake's further messages about a job whose failure is shown already.
_REPEATED_AFTER_A_FAILURE = (
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
        settings = self.common_settings
        stream = sys.stdout if settings.stdout else sys.stderr
        self._default_handler: logging.Handler | None = None
        if settings.dryrun or settings.printshellcmds or settings.quiet or settings.verbose or settings.debug_dag:
            everything = (
                settings.quiet,
                settings.debug_dag,
                settings.verbose,
                settings.dryrun,
                settings.printshellcmds,
            )
            formatter = DefaultFormatter(settings.quiet, settings.show_failed_logs)
            self._default_handler = ColorizingTextHandler(
                settings.nocolor, stream, formatter, DefaultFilter(*everything)
            )
            return
        os.environ["VISUALCHAT_LOG_ONLY"] = "1"
        console = Console(file=stream, no_color=settings.nocolor)
        self._run = Run()
        self._screen = Bars(console) if console.is_terminal else Lines(stream)
        self._stopped = threading.Event()
        self._clock = threading.Thread(target=self._tick, name="screen", daemon=True)
        self._clock.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Show what matters of a record; called by one thread at a time."""
        try:
            if self._default_handler is not None:
                self._default_handler.handle(record)
            else:
                self._show(record)
        except Exception:  # noqa: BLE001 (as logging does: a handler never ends the program that logs)
            self.handleError(record)

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._default_handler is None and not self._stopped.is_set():
            self._stopped.set()
            self._clock.join()
            self._screen.close(self._run)
        super().close()

    def _show(self, record: logging.LogRecord) -> None:
        event = SimpleNamespace(**vars(record))
        match getattr(record, "event", None):
            case LogEvent.RUN_INFO if not self._run.stages:
                self._run.plan(event.stats)
                self._screen.begin(self._run)
            case LogEvent.JOB_INFO:
                title = event.rule_msg or event.rule_name
                self._run.start(event.jobid, Job(event.rule_name, title, _first(event.log)))
            case LogEvent.JOB_FINISHED:
                if (job := self._run.running.get(event.job_id)) and (notes := job.notes()):
                    self._screen.print("\n".join(notes))
                if ended := self._run.finish(event.job_id):
                    self._screen.stage_done(ended, self._run)
            case LogEvent.JOB_ERROR:
                self._show_failure(event)
            case LogEvent.GROUP_ERROR | LogEvent.ERROR | None:
                text = record.getMessage()
                matters = record.levelno >= logging.WARNING or "Nothing to be done" in text
                if matters and not any(known in text for known in _REPEATED_AFTER_A_FAILURE):
                    self._screen.print(text)

    def _show_failure(self, event: SimpleNamespace) -> None:
        """Show which job failed, what its program wrote last, and the path of its log."""
        job, log = self._run.running.get(event.jobid), _first(event.log)
        self._run.fail(event.jobid)
        after = f" after {clock(job.age())}" if job else ""
        lines = [f"FAILED{after}: {job.title if job else event.rule_name} (rule {event.rule_name})"]
        lines += [f"  {line}" for line in last_message(log)]
        lines += [f"  log: {log}"] if log else []
        self._screen.print("\n".join(lines))

    def _tick(self) -> None:
        while not self._stopped.wait(1.0):
            with self.lock:
                if self._run.stages:
                    self._screen.update(self._run)


def _first(logs: list[str]) -> Path | None:
    return Path(logs[0]) if logs else None
