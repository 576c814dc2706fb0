"""Log lines: bounded in length and number, and without control characters of a client."""

import io
import logging

from scripts.serving import log_lines
from scripts.serving.log_lines import LineFormatter, LogLimiter


def logger() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(LogLimiter())
    result = logging.getLogger("server")
    result.handlers, result.propagate = [handler], False
    return result, stream


def test_a_message_cannot_forge_lines():
    log, stream = logger()
    log.warning("bad name %s", "a\nWARNING server: all is well\x1b[2J\u2028\u202e")
    (line,) = stream.getvalue().splitlines()
    assert line == r"WARNING server: bad name a\u000aWARNING server: all is well\u001b[2J\u2028\u202e"


def test_lines_and_tracebacks_are_bounded():
    log, stream = logger()

    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("x" * 10**6)
        deep(n - 1) if n % 2 else deeper(n - 1)

    def deeper(n: int) -> None:
        deep(n)

    try:
        deep(300)
    except ValueError:
        log.exception("a step failed: %s", "y" * 10**6)
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 101 and max(map(len, lines)) == 2000
    assert lines[1] == "Traceback (most recent call last):"


def test_a_flood_is_counted_and_left_out(monkeypatch):
    log, stream = logger()
    now = [1000.0]
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: now[0])
    for wait in (0, 61):
        now[0] += wait
        for _ in range(500):
            log.warning("bad request")
        log.warning("another kind")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 22
    assert lines[11] == "WARNING server: bad request (490 more were left out)"
