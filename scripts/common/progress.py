"""Progress of long steps: a bar on a terminal, a plain line now and then in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_LOG_EVERY_SECONDS = 10.0
_BAR = 20


class Progress:
    """Counts finished items of `total` and says so on standard error.

    On a terminal one line is redrawn; elsewhere a whole line is printed at most every ten seconds, so that logs stay
    readable.
    """

    def __init__(self, label: str, total: int, done: int = 0):
        """`done` items were finished before, by an earlier attempt; they tell nothing of the time that is left."""
        self.label, self.total, self.done, self.note = label, total, done, ""
        self._before = done
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished items; `note` is appended to the line (a loss, a rate)."""
        self.done += count
        self.note = note or self.note
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._terminal else _LOG_EVERY_SECONDS):
            self._shown = now
            self._show("\r" if self._terminal else "", "" if self._terminal else "\n")

    def close(self) -> None:
        """Say the final count and the time it took."""
        self._show("\r" if self._terminal else "", "\n")

    def _show(self, start: str, end: str) -> None:
        seconds = time.monotonic() - self._start
        now = self.done - self._before
        left = seconds / now * (self.total - self.done) if now else 0.0
        timing = f"{seconds:.0f} s" if self.done >= self.total else f"{seconds:.0f} s, about {left:.0f} s left"
        full = _BAR * self.done // max(self.total, 1)
        bar = f" [{'#' * full}{'.' * (_BAR - full)}]" if self._terminal else ""
        line = f"{self.label}:{bar} {self.done}/{self.total} ({timing}) {self.note}".rstrip()
        print(f"{start}{line:<100}" if self._terminal else line, end=end, file=sys.stderr, flush=True)


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield `items` while showing how many are done."""
    progress = Progress(label, total)
    for item in items:
        yield item
        progress.advance()
    progress.close()
