"""Log lines that a client cannot forge, and of which it cannot make the log grow.

A line is at most 2,000 characters long, a traceback has at most 100 lines, control characters of their texts are
escaped, and of one message at most ten lines a minute are written.
"""

import logging
import re
import time

_MAX_LINE = 2000
_MAX_TRACEBACK_LINES = 100
_MAX_PER_MINUTE = 10
# Also the separators of Unicode, and what reverses the direction of text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class LogLimiter(logging.Filter):
    """Lets at most `per_minute` records of one place in the code pass, and adds to the next one how many did not."""

    def __init__(self, per_minute: int = _MAX_PER_MINUTE) -> None:
        super().__init__()
        self.per_minute = per_minute
        self._seen: dict[str, tuple[float, int]] = {}  # place -> (begin of its minute, records since)

    def allows(self, place: str) -> bool:
        """Count one record; false if it is one too many."""
        now = time.monotonic()
        begin, count = self._seen.get(place, (now, 0))
        if now - begin >= 60:
            begin, count = now, 0
        self._seen[place] = begin, count + 1
        return count < self.per_minute

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        place = f"{record.pathname}:{record.lineno}"
        before = self._seen.get(place, (0.0, 0))[1]
        allowed = self.allows(place)
        if allowed and before > self.per_minute:
            record.msg, record.args = f"{record.getMessage()} ({before - self.per_minute} more were left out)", None
        return allowed


class LineFormatter(logging.Formatter):
    """Formats a record as one line, with the lines of its traceback after it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines of a record."""
        lines = super().format(record)
        # The message may have line breaks of a client; those of the traceback are Python's.
        trace = record.exc_text.splitlines() if record.exc_text else []
        head = lines[: len(lines) - len(record.exc_text)] if record.exc_text else lines
        kept = [head.rstrip("\n"), *trace[:_MAX_TRACEBACK_LINES]]
        return "\n".join(_CONTROL.sub(lambda c: f"\\u{ord(c[0]):04x}", line)[:_MAX_LINE] for line in kept)


def bound_logs() -> None:
    """Write the log of this process to standard error in bounded lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(LogLimiter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
