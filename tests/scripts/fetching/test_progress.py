"""Bytes in words."""

from scripts.fetching.progress import BytesProgress, duration


def test_rate_and_time_left_count_what_this_run_fetched():
    progress = BytesProgress("train2017.zip", 19_336_861_798, done=9_000_000_000)
    progress.done += 400_000_000
    assert progress.line(10.0) == "train2017.zip: 9,400.0 of 19,336.9 MB (40.0 MB/s, about 4 min 8 s left)"


def test_a_file_of_unknown_size():
    progress = BytesProgress("x")
    progress.done += 2_500_000
    assert progress.line(2.0) == "x: 2.5 MB (1.2 MB/s)"


def test_nothing_yet():
    assert BytesProgress("x", 1_000_000).line(0.0) == "x: 0.0 of 1.0 MB (0.0 MB/s)"


def test_starting_again_forgets_the_rate():
    progress = BytesProgress("x", 10_000_000)
    progress.done += 9_000_000
    progress.begin(20_000_000, 0)
    assert progress.line(5.0) == "x: 0.0 of 20.0 MB (0.0 MB/s)"


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.9, 60, 3599, 7850)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 10 min",
    ]
