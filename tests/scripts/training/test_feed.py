"""A step never waits for its device: neither the model, nor how micro-batches reach it, nor their losses."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from model.modeling import VisualChatForConditionalGeneration
from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.config.run import RunConfig
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import load_model
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import LossModule
from scripts.training.feed import MicroBatchFeed
from scripts.training.trainable import mark_trainable
from tests.blends import write_blend
from tests.runs import TrainingSetup
from tests.scripts.training.waits import RefuseWaits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reader(lab: TrainingSetup, tmp_path_factory) -> BlendReader:
    folder = tmp_path_factory.mktemp("packed")
    return BlendReader(write_blend(folder, 24, lab.bases["tokenizer"], pack=3), folder)


def model_of(
    lab: TrainingSetup, attention: str = "mmca"
) -> tuple[VisualChatForConditionalGeneration, MicroBatchDataset]:
    model, processor = load_model(lab.model, lab.root, attention, torch.float32, check=False)
    mark_trainable(model, RunConfig(model="m", blend="b", train_language="full", train_vision="full"))
    return model.train(), processor


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("attention", ["mmca", "causal", "dattn"])
def test_forward_and_backward_never_wait(lab: TrainingSetup, reader: BlendReader, attention, chunks):
    model, processor = model_of(lab, attention)
    batches = MicroBatchDataset([reader], processor, model.layout_options(), global_batch=4, micro_batch=2)
    step, losses = LossModule(model), torch.zeros(2, dtype=torch.float64)
    for tower in (None, model.vision_tower):
        for batch in MicroBatchFeed([batches[0], batches.filler()], CPU, tower):
            with RefuseWaits():
                total, each = step(**batch.inputs | {"chunks": chunks})
                total.backward()
                losses.index_add_(0, batch.label_datasets, each)
    assert losses.min() > 0


def test_what_waits_is_found():
    """The test above can fail."""
    values = torch.arange(4.0)
    waits = [
        lambda: values.sum().item(),
        lambda: bool(values.any()),
        lambda: values[values > 1],
        values.nonzero,
        lambda: values.tolist(),  # noqa: PLW0108 - replaced meanwhile
        lambda: values.masked_fill(values > 1, 0).masked_select(values > 1),
        lambda: values.repeat_interleave(torch.tensor([1, 2, 3, 4])),
        lambda: values.masked_scatter(values > 1, values),
    ]
    for wait in waits[:-1]:
        with RefuseWaits(), pytest.raises(AssertionError, match="wait"):
            wait()
    with RefuseWaits():  # its backward pass waits, not itself
        waits[-1]()


def test_the_next_micro_batch_is_read_before_it_is_taken_and_its_error_raised_when_it_is(lab, reader):
    model, processor = model_of(lab)
    batches = MicroBatchDataset([reader], processor, model.layout_options(), global_batch=4, micro_batch=2)
    read = []

    def source():
        for number in range(2):
            read.append(number)
            time.sleep(0.05)
            yield batches[number]
        raise UserError("a shard is gone")

    feed = MicroBatchFeed(source(), CPU)
    assert read == []
    first = feed.take()
    feed.prepare()
    feed.prepare()
    assert read == [0, 1] and first.host.tokens == batches[0].tokens and feed.waited > 0.09
    assert torch.equal(feed.take().inputs["input_ids"], batches[1].tensors["input_ids"])
    feed.prepare()  # the step before must end in peace
    for _ in range(2):
        with pytest.raises(UserError, match="a shard is gone"):
            feed.take()


def test_a_step_knows_its_labels_before_its_batches_are_read(lab, reader):
    _, processor = model_of(lab)
    model, _ = model_of(lab)
    parts = [
        MicroBatchDataset(
            [reader], processor, model.layout_options(), global_batch=4, micro_batch=1, rank=rank, ranks=2
        )
        for rank in range(2)
    ]
    for step in range(parts[0].steps):
        micro = [part[step * part.accumulation + n] for part in parts for n in range(part.accumulation)]
        counts = parts[0].step_counts(step)
        assert all(batch.step == counts for batch in micro)
        assert counts.labels == sum((batch.labels for batch in micro[1:]), micro[0].labels)
        assert counts.tokens == sum(batch.tokens for batch in micro)


def test_counts_that_do_not_belong_to_the_blend_are_refused(lab, reader, tmp_path):
    model, processor = model_of(lab)

    def batches(name: str, change) -> MicroBatchDataset:
        folder = shutil.copytree(reader.folder, tmp_path / name)
        change(folder / "counts.npy")
        return MicroBatchDataset(
            [BlendReader(folder, folder)], processor, model.layout_options(), global_batch=4, micro_batch=2
        )

    def rewrite(path: Path, change) -> None:
        np.save(path, change(np.load(path)))
        manifest = json.loads(path.with_name("manifest.json").read_text())
        manifest["files"]["counts.npy"] = file_sha256(path)
        path.with_name("manifest.json").write_text(json.dumps(manifest))

    def more_labels(counts: np.ndarray) -> np.ndarray:
        counts["labels"] += 1
        return counts

    with pytest.raises(UserError, match=r"counts.npy is missing.*scripts\.verify"):
        batches("missing", lambda path: path.unlink()).step_counts(0)
    with pytest.raises(UserError, match=r"counts.npy is no table of counts of 24 conversations, but .*\(23,\)"):
        batches("short", lambda path: rewrite(path, lambda counts: counts[1:])).step_counts(0)
    with pytest.raises(UserError, match=r"counts.npy does not count what unit 0 holds"):
        batches("other", lambda path: rewrite(path, more_labels))[0]
    with pytest.raises(UserError, match=r"counts.npy is damaged: it does not have the sha256"):
        batches("cut", lambda path: path.write_bytes(path.read_bytes()[:200])).step_counts(0)


def test_processes_of_the_loader_survive_the_signals_that_ask_a_run_to_stop(lab, reader):
    """torchrun sends them to all processes of a rank, which still has to finish its step."""
    model, processor = model_of(lab)
    batches = MicroBatchDataset([reader], processor, model.layout_options(), global_batch=4, micro_batch=1)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    feed = batches.load(0, 1)
    read = [next(feed).tokens]
    (worker,) = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        worker.send_signal(number)
    read += [batch.tokens for batch in feed]
    assert read == [batches[number].tokens for number in range(len(batches))]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_loader_is_its_message(lab, reader, tmp_path, workers):
    model, processor = model_of(lab)
    folder = shutil.copytree(reader.folder, tmp_path / "damaged")
    for shard in folder.glob("*.tar"):
        data = shard.read_bytes()
        shard.write_bytes(data.replace(b"\xff\xd8\xff", b"\0\0\0"))  # the beginning of every JPEG
    batches = MicroBatchDataset(
        [BlendReader(folder, folder)], processor, model.layout_options(), global_batch=4, micro_batch=4
    )
    message = (
        r"^\S+\.tar is damaged: the image \w+ of coco does not have its sha256 .*scripts\.verify --root \S+ --repair"
    )
    with pytest.raises(UserError, match=message):
        list(batches.load(0, workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_machine_in_the_loader_is_its_message(lab, reader, tmp_path, workers):
    model, processor = model_of(lab)
    folder = shutil.copytree(reader.folder, tmp_path / "results/blend/tiny/epoch-000")
    batches = MicroBatchDataset(
        [BlendReader(folder, folder)], processor, model.layout_options(), global_batch=4, micro_batch=4
    )
    for shard in folder.glob("*.tar"):
        shard.unlink()
    message = rf"\.tar is missing\. Run `python -m scripts\.verify --root {tmp_path}/results --repair`"
    with pytest.raises(UserError, match=message):
        list(batches.load(0, workers))
