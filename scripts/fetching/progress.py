"""Progress of a download: megabytes, megabytes a second, and the time that is left."""

import sys
import time

from scripts.common.progress import Progress

_MB = 1e6


class BytesProgress(Progress):
    """Counts bytes as `Progress` counts items; bytes that were there before do not count for the rate.

    Args:
        total: size of the file, None where the server does not say.
        done: bytes that are there already.
    """

    def __init__(self, label: str, total: int | None = None, done: int = 0):
        super().__init__(label, total or 0)
        self.begin(total, done)

    def begin(self, total: int | None, done: int) -> None:
        """Go on, or start again, from `done` bytes."""
        self.total, self.done, self._before = total or 0, done, done
        self._start = time.monotonic()

    def line(self, seconds: float) -> str:
        """What is said when `seconds` have passed since `begin`."""
        rate = (self.done - self._before) / seconds if seconds > 0 else 0.0
        size = f"{self.done / _MB:,.1f} MB"
        if self.total:
            size = f"{self.done / _MB:,.1f} of {self.total / _MB:,.1f} MB"
        timing = f"{rate / _MB:.1f} MB/s"
        if rate and self.done < self.total:
            timing += f", about {duration((self.total - self.done) / rate)} left"
        return f"{self.label}: {size} ({timing})"

    def _show(self, start: str, end: str) -> None:
        line = self.line(time.monotonic() - self._start)
        print(f"{start}{line:<100}" if self._terminal else line, end=end, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`7850` -> `2 h 10 min`: the two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"
