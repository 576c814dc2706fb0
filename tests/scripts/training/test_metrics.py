"""The record of a run: cut back to a checkpoint it holds every step once, in the file and in TensorBoard."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.common.errors import UserError
from scripts.training.metrics import (
    Metrics,
    read_metrics,
    speed_of_step,
    step_note,
    summary,
    throughput,
    throughput_line,
)
from scripts.training.trackers import TensorBoard, TrackedRun
from tests.disks import PowerCut


def run(step: int) -> TrackedRun:
    return TrackedRun("visualchat", "demo", "f00", {}, step)


def step(number: int, loss: float) -> dict:
    return {"step": number, "loss": loss, "lr": 0.1, "datasets": {"llava": {"loss": loss, "supervised_tokens": 3}}}


def measurement(number: int, loss: float) -> dict:
    return {"step": number, "heldout_loss": loss, "datasets": {"llava": {"loss": loss, "supervised_tokens": 3}}}


def test_the_steps_of_a_resumed_run_are_in_file_and_tracker_once(tmp_path: Path):
    metrics = Metrics(tmp_path, 0, [TensorBoard(tmp_path, run(0))])
    metrics.write(measurement(0, 9.0))
    metrics.write(step(1, 5.0))
    kept = metrics.sync()
    metrics.write(step(2, 4.0))
    metrics.write(step(3, 3.0))
    metrics.close()

    metrics = Metrics(tmp_path, kept, [TensorBoard(tmp_path, run(1))])
    metrics.write(step(2, 4.5))
    metrics.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [measurement(0, 9.0), step(1, 5.0), step(2, 4.5)]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 5.0), (2, 4.5)]
    assert [event.value for event in events.Scalars("heldout_loss/llava")] == [9.0]


def test_the_lines_that_a_checkpoint_counts_are_on_the_disk(tmp_path: Path, monkeypatch):
    disk = PowerCut(monkeypatch)
    metrics, path = Metrics(tmp_path, 0), tmp_path / "metrics.jsonl"
    metrics.write(step(1, 5.0))
    assert metrics.sync() == path.stat().st_size > 0 and disk.spares(path)
    metrics.write(step(2, 4.0))
    assert not disk.spares(path)
    metrics.close()


def test_lost_lines_are_a_clear_error(tmp_path: Path):
    with pytest.raises(UserError, match="has lost lines"):
        Metrics(tmp_path, 100)


def test_the_summary_has_start_end_and_held_out_losses():
    lines = [measurement(0, 9.0), *(step(number, 21.0 - number) for number in range(1, 21)), measurement(20, 2.0)]
    assert summary(lines) == {
        "first_loss": 20.0,
        "last_loss": 1.0,
        "mean_loss_of_last_tenth": 1.5,
        "heldout": [[0, 9.0], [20, 2.0]],
    }


def test_the_throughput_is_that_of_all_steps_but_the_first():
    def fast(number: int, seconds: float) -> dict:
        rates = {"seconds": seconds, "data_seconds": 0.5, "flops_per_second": 1e9, "memory_bytes": number}
        return step(number, 1.0) | rates | {"tokens": 100, "supervised_tokens": 40}

    lines = [measurement(0, 9.0), fast(1, 50.0), fast(2, 1.0), fast(3, 3.0)]
    assert throughput(lines, peak=4e9) == {
        "tokens_per_second": 50.0,
        "supervised_tokens_per_second": 20.0,
        "data_wait": 0.25,
        "flops_per_second": 1000000000,
        "model_flops_utilisation": 0.25,
        "memory_bytes": 3,
    }
    assert throughput(lines, peak=None)["model_flops_utilisation"] is None


def test_log_and_note_show_tokens_per_second_mfu_and_the_share_of_waiting():
    speed = speed_of_step(2.0, 0.5, tokens=3000, supervised=400, flops=3e12, peak=5e12)
    assert speed == {
        "seconds": 2.0,
        "data_seconds": 0.5,
        "tokens_per_second": 1500.0,
        "supervised_tokens_per_second": 200.0,
        "flops_per_second": 1.5e12,
        "model_flops_utilisation": 0.3,
    }
    line = step(2, 0.25) | speed | {"tokens": 3000, "supervised_tokens": 400, "memory_bytes": 2**30}
    assert step_note(line) == "loss 0.2500, 1,500 tokens/s, 30.0% MFU, 25% waiting for data"
    shown = throughput_line(throughput([line], peak=5e12))
    assert "1,500 tokens/s" in shown and "30.0% MFU" in shown and "25.0% of the time waiting for data" in shown


def test_without_a_known_peak_there_is_no_mfu():
    speed = speed_of_step(2.0, 0.5, tokens=3000, supervised=400, flops=3e12, peak=None)
    assert "model_flops_utilisation" not in speed
    line = step(2, 0.25) | speed | {"tokens": 3000, "supervised_tokens": 400, "memory_bytes": 2**30}
    assert "MFU" not in step_note(line) and "MFU" not in throughput_line(throughput([line], peak=None))
