"""Progress of long steps: a bar on a terminal, a plain line now and then in a log file. tqdm words the line."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_BAR_EVERY_SECONDS, _LOG_EVERY_SECONDS = 0.2, 10.0


class Progress:
    """Counts finished items of `total` and shows them on standard error.

    On a terminal one line is redrawn; elsewhere a line is printed at most every ten seconds, so that logs stay
    readable.

    Args:
        label: beginning of the line.
        total: items in all.
        done: items that an earlier attempt has finished; they do not count for the estimate of the time left.
    """

    def __init__(self, label: str, total: int | None, done: int = 0, *, unit: str = "it", scale: bool = False) -> None:
        """Start counting; nothing is shown yet.

        Args:
            label: what is being done.
            total: None where it is not known.
            done: items that were finished before, by an earlier attempt; they do not count for the rate.
            unit: what is counted, in short: "B" for bytes.
            scale: show numbers as k, M, G.
        """
        self.label, self.note, self._unit, self._scale = label, "", unit, scale
        self._terminal = sys.stderr.isatty()
        self._shown = time.monotonic()
        self.begin(total, done)

    def begin(self, total: int | None, done: int) -> None:
        """Go on, or start again, from `done` items."""
        self.total, self.done, self._before = total, done, done
        self._start = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished items; `note` is appended to the line (a loss, a rate)."""
        self.done += count
        self.note = note or self.note
        now = time.monotonic()
        if now - self._shown >= (_BAR_EVERY_SECONDS if self._terminal else _LOG_EVERY_SECONDS):
            self._shown = now
            self._show(end="" if self._terminal else "\n")

    def close(self) -> None:
        """Show the final count and the time it took."""
        self._show(end="\n")

    def line(self, seconds: float, columns: int = 0) -> str:
        """The line when `seconds` have passed since `begin`, with a bar that fills `columns`; 0: without a bar."""
        return tqdm.format_meter(
            self.done,
            self.total,  # type: ignore[arg-type]  # None where it is not known: the stubs say float
            seconds,
            ncols=columns,
            prefix=self.label,
            postfix=self.note,
            initial=self._before,
            ascii=True,
            unit=self._unit,
            unit_scale=self._scale,
        )

    def _show(self, end: str) -> None:
        write_over(self.line(time.monotonic() - self._start, _columns() if self._terminal else 0), end)


def write_over(text: str, end: str = "\n") -> None:
    """Print on standard error; on a terminal in place of the bar that may stand in this line."""
    text = f"\r{text:<{_columns()}}" if sys.stderr.isatty() else text
    print(text, end=end, file=sys.stderr, flush=True)


def _columns() -> int:
    # A line that fills the terminal would wrap.
    return shutil.get_terminal_size().columns - 1


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield `items` while showing how many are done."""
    progress = Progress(label, total)
    for item in items:
        yield item
        progress.advance()
    progress.close()
