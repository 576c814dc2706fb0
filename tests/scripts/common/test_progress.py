"""Progress: lines for logs, a bar on a terminal; items of an earlier attempt do not count for the rate."""

import io
import sys

import pytest

from scripts.common import progress as module
from scripts.common.progress import Progress, track, write_over


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, set by the test."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left_count_what_this_attempt_did():
    progress = Progress("train2017.zip", 19_336_861_798, done=9_000_000_000, unit="B", scale=True)
    progress.done += 400_000_000
    assert progress.line(10.0) == "train2017.zip:  49% 9.40G/19.3G [00:10<04:08, 40.0MB/s]"


def test_a_total_that_is_not_known():
    progress = Progress("x", None, unit="B", scale=True)
    progress.done += 2_500_000
    assert progress.line(2.0) == "x: 2.50MB [00:02, 1.25MB/s]"


def test_nothing_yet():
    assert Progress("x", 1_000_000, unit="B", scale=True).line(0.0) == "x:   0% 0.00/1.00M [00:00<?, ?B/s]"


def test_starting_again_forgets_the_rate():
    progress = Progress("x", 10_000_000)
    progress.done += 9_000_000
    progress.begin(20_000_000, 0)
    assert progress.line(5.0) == "x:   0% 0/20000000 [00:05<?, ?it/s]"


def test_a_log_gets_a_whole_line_at_most_every_ten_seconds_and_the_last_count(clock, capsys):
    progress = Progress("training", 40)
    for step in range(30):
        clock[0] += 1.0
        progress.advance(note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" [")[0] for line in lines] == [f"training:  {25 * n}% {10 * n}/40" for n in (1, 2, 3)]
    assert lines[-1] == "training:  75% 30/40 [00:30<00:10,  1.00it/s, loss 29]"
    progress.close()
    assert capsys.readouterr().err == lines[-1] + "\n"


def test_a_short_step_is_one_line(clock, capsys):
    assert list(track("abc", "read", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == "read: 100% 3/3 [00:00<?, ?it/s]\n"


def test_a_terminal_has_one_line_that_is_redrawn_within_its_width(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    progress = Progress("training", 4)
    for _ in range(4):
        clock[0] += 1.0
        progress.advance(note="loss 1.5")
    write_over("training: a message")
    progress.close()
    written = terminal.getvalue()
    assert written.count("\n") == 2 and written.endswith("\n")
    lines = written.replace("\n", "").split("\r")[1:]
    assert len(lines) == 6 and {len(line) for line in lines} == {59}
    assert lines[1].startswith("training:  50%|#") and lines[1].endswith("| 2/4 [00:02<00:02,  1.00it/s, loss 1.5]")
    assert lines[4].rstrip() == "training: a message"
