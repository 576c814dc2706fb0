"""The training benchmark: its peers learn the same tokens, its sizes fit a GPU, and its comparisons are right."""

import dataclasses
import sys

import pytest

from benchmarks import train
from benchmarks.train_candidates import Options, Step, measurements
from benchmarks.train_data import Lengths, Shape, load_processor, write_data, write_model

TINY = Shape(width=64, layers=1, vocabulary=400, vision_width=64, vision_layers=1)
OPTIONS = Options(rows=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with model and conversations, and the lengths of these."""
    folder = tmp_path_factory.mktemp("benchmark")
    write_model(folder, TINY)
    return folder, write_data(folder, 6, 2048, load_processor(folder), 2048)


def test_the_candidates_have_the_same_loss(data):
    train.check_losses(data[0])


def test_a_peer_is_given_the_tokens_of_ours_and_is_measured(data):
    from benchmarks.train_peers import check_tokens

    folder, lengths = data
    check_tokens(folder)
    result = train.run_alone(train.command("trainer, grouped", folder, OPTIONS), 1)
    assert result["all_labels"] == lengths.labels and result["steps"] > 1
    assert 0 < result["labels"] < lengths.labels
    assert result["seconds"] > 0 and result["memory"] > result["added"] > 0


def test_all_ranks_together_train_on_every_conversation(data):
    folder, lengths = data
    result = train.run_alone(train.command("ours", folder, dataclasses.replace(OPTIONS, ranks=2, workers=1)), 2)
    assert result["all_labels"] == lengths.labels and result["flops"] > 0
    assert 0 < result["data_seconds"] < result["seconds"]


def test_a_rank_that_fails_ends_all_and_its_output_is_the_error():
    one_fails = "import os, time; print('rank', os.environ['RANK']); time.sleep(60 * (os.environ['RANK'] == '0')); x"
    with pytest.raises(RuntimeError, match=r"(?s)failed:\nrank 1.*NameError"):
        train.run_alone([sys.executable, "-c", one_fails], 2)


def test_a_lack_of_memory_is_an_error_of_its_own():
    with pytest.raises(train.OutOfMemoryError):
        train.run_alone([sys.executable, "-c", "raise RuntimeError('torch.OutOfMemoryError: CUDA out of memory')"], 1)


def test_layers_of_a_7b_model_are_chosen_by_the_memory():
    shape, lengths = Shape(width=4096, heads=32, inner=11008), Lengths(longest=2000, labels=0)
    options = Options(rows=1)
    found = [train.layers_that_fit(shape, options, lengths, 4096, memory * 2**30) for memory in (8, 40, 80, 200)]
    assert found[0] == 1 and found[1] < found[2] <= found[3] == 32
    assert found[2] >= 20


def test_measurements_leave_out_the_first_step():
    steps = [Step(9.0, 8.0, 7.0, 10, 1e9, 5.0), Step(1.0, 0.5, 0.25, 20, 2e9, 4.0), Step(1.0, 0.5, 0.25, 30, 3e9, 3.0)]
    found = measurements(steps, before=100, peak=300)
    assert (found["seconds"], found["labels"], found["flops"], found["data_seconds"]) == (2.0, 50, 5e9, 0.5)
    assert (found["all_labels"], found["first_loss"], found["last_loss"]) == (60, 5.0, 3.0)
    assert (found["memory"], found["added"]) == (300, 200)
    assert train.rate(found, "cpu_seconds", None) == 50.0 and train.rate(found, "flops", 5e9) == 0.5
