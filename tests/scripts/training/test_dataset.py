"""Cutting a run into batches: every conversation once, the same for any number of ranks, and only as planned."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.batch_layout import LayoutOptions
from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.inference.blend_reader import BlendReader
from scripts.inference.decoded_images import DecodedImageCache
from scripts.media.opening import UnreadableImageError
from scripts.training.dataset import MicroBatchDataset
from tests.blends import write_blend
from tests.runs import TrainingSetup

MMCA = LayoutOptions("self", "sum", "sdpa", vocabulary=512)


@pytest.fixture(scope="module")
def processor(lab: TrainingSetup) -> VisualChatProcessor:
    return VisualChatProcessor.from_pretrained(lab.model)


@pytest.fixture(scope="module")
def readers(lab: TrainingSetup) -> list[BlendReader]:
    return [BlendReader(folder, lab.root) for folder in lab.blends]


def cut(readers, processor, rank=0, ranks=1, micro_batch=8, **options) -> MicroBatchDataset:
    return MicroBatchDataset(
        readers, processor, MMCA, global_batch=4, micro_batch=micro_batch, rank=rank, ranks=ranks, **options
    )


def rows(batch) -> list[tuple[int, ...]]:
    """The tokens of every row that is no filler."""
    tensors = batch.tensors
    return [
        tuple(ids[modality > 0].tolist())
        for ids, modality, name in zip(tensors["input_ids"], tensors["modality"], batch.datasets, strict=True)
        if name
    ]


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 8), (2, 8), (2, 1), (3, 1), (4, 2)])
def test_every_step_holds_its_global_batch_once(readers, processor, ranks, micro_batch):
    whole = cut(readers, processor)
    parts = [cut(readers, processor, rank, ranks, micro_batch) for rank in range(ranks)]
    assert whole.steps == 26 and len({(part.steps, part.accumulation) for part in parts}) == 1
    for step in (0, 7, 12, 25):
        micro = [part[step * part.accumulation + place] for part in parts for place in range(part.accumulation)]
        assert sorted(row for batch in micro for row in rows(batch)) == sorted(rows(whole[step]))
        assert sum(batch.tokens for batch in micro) == whole[step].tokens
        assert sum((batch.labels for batch in micro[1:]), micro[0].labels) == whole[step].labels
        for batch in micro:
            assert sum(batch.labels.values()) == int((batch.tensors["labels"] >= 0).sum())


@pytest.mark.parametrize(("ranks", "micro_batch"), [(2, 8), (2, 1), (3, 1)])
def test_a_rank_takes_every_so_many_th_unit_of_a_batch_that_is_sorted_by_cost(readers, processor, ranks, micro_batch):
    whole = cut(readers, processor)
    for rank in range(ranks):
        part = cut(readers, processor, rank, ranks, micro_batch)
        for step in (0, 12):
            micro = range(step * part.accumulation, (step + 1) * part.accumulation)
            assert [row for place in micro for row in rows(part[place])] == rows(whole[step])[rank::ranks]


def test_a_conversation_without_its_images_keeps_its_text_and_its_labels(readers, processor):
    whole = cut(readers, processor)
    positions = whole.first_with_images(3)
    assert len(positions) <= 3 and all(readers[0].read(position).images for position in positions)
    assert whole.first_with_images(1) == positions[:1]
    for position in positions:
        shown, text = whole.alone(position), whole.alone(position, images=False)
        kept = shown.tensors["modality"] == 1
        assert "pixel_values" in shown.tensors and "pixel_values" not in text.tensors
        assert text.tensors["input_ids"].tolist() == [shown.tensors["input_ids"][kept].tolist()]
        assert text.tensors["labels"].tolist() == [shown.tensors["labels"][kept].tolist()]
        assert text.labels == shown.labels and text.labels.total() > 0


def test_conversations_one_by_one_are_those_of_this_rank(readers, processor):
    alone = [uids for uids, _ in cut(readers, processor).conversations(12)]
    assert alone == ["+".join(readers[0].uids(unit)) for unit in (48, 49)]
    shares = [list(cut(readers, processor, rank, 3).conversations(0)) for rank in range(3)]
    every = [uids for uids, _ in cut(readers, processor).conversations(0)]
    assert [[uids for uids, _ in share] for share in shares] == [every[rank::3] for rank in range(3)]
    assert rows(cut(readers, processor, 1, 3)[0]) == [row for _, batch in shares[1] for row in rows(batch)]


def test_steps_know_their_epoch_and_units(readers, processor):
    batches = cut(readers, processor)
    assert batches.steps_per_epoch == [13, 13]
    assert batches.locate(0) == (0, 0) and batches.locate(12) == (0, 48) and batches.locate(13) == (1, 0)
    assert batches.locate(26) == (2, 0)
    assert batches.units(12) == (0, range(48, 50))
    limited = cut(readers[:1], processor, limit=5)
    assert limited.steps == 5 and rows(limited[4]) == rows(batches[4])


def test_other_processes_prepare_the_same_batches(readers, processor):
    batches = cut(readers, processor, rank=1, ranks=2)
    torch.manual_seed(5)
    inline, ahead = list(batches.load(20, 0)), list(batches.load(20, 2))
    assert torch.initial_seed() == 5
    assert len(inline) == len(ahead) == 6
    for one, two in zip(inline, ahead, strict=True):
        assert (one.datasets, one.labels, one.tokens) == (two.datasets, two.labels, two.tokens)
        for name, value in one.tensors.items():
            assert torch.equal(value, two.tensors[name])


def test_a_filler_counts_for_nothing(readers, processor):
    filler = cut(readers, processor, rank=3, ranks=4)[12]
    assert filler.datasets == [""] and filler.tokens == 0 and not filler.labels
    assert (filler.tensors["labels"] < 0).all() and "pixel_values" not in filler.tensors


def test_a_conversation_that_was_planned_otherwise_is_refused(lab: TrainingSetup, processor, tmp_path: Path):
    folder = write_blend(tmp_path / "blend", 4, lab.bases["tokenizer"], image_tokens=15)
    batches = cut([BlendReader(folder, tmp_path)], processor)
    with pytest.raises(UserError, match=r"llava(_dial)?:train\d was planned with .* same `tokens`"):
        batches[0]


@pytest.mark.parametrize("name", ["n_tokens", "n_labels"])
def test_tokens_and_labels_are_compared_with_the_plan(readers, processor, name: str):
    class Miscounted(BlendReader):
        def read(self, position, images=True):
            sample = super().read(position, images)
            return dataclasses.replace(sample, **{name: getattr(sample, name) + 1})

    with pytest.raises(UserError, match=r"llava\S* was planned with \d+ tokens and \d+ labels, but .* makes \d+ and"):
        cut([Miscounted(readers[0].folder, readers[0].root)], processor)[0]


def test_a_damaged_image_names_its_conversation(readers, processor):
    class Damaged(BlendReader):
        def read(self, position, images=True):
            sample = super().read(position, images)
            return dataclasses.replace(sample, images=[data[:100] for data in sample.images])

    reader = Damaged(readers[0].folder, readers[0].root)
    with pytest.raises(UserError, match=r"image 1 of llava\S* \(sha256 \w{64}\), which cannot be decoded"):
        cut([reader], processor)[0]


def test_the_cache_gives_the_same_pixels_and_keeps_its_bound(processor):
    def encoded(colour):
        buffer = io.BytesIO()
        Image.new("RGB", (50, 40), colour).save(buffer, "PNG")
        return buffer.getvalue()

    red, blue = encoded("red"), encoded("blue")
    cache = DecodedImageCache(processor, max_bytes=3 * 32 * 32)
    first = cache.get("red", red)
    assert cache.get("red", b"not needed any more") is first
    assert np.array_equal(cache.get("blue", blue), processor.preprocess_image(Image.open(io.BytesIO(blue))))
    with pytest.raises(UnreadableImageError, match="not_an_image"):
        cache.get("blue", b"still needed: the cache was full")
