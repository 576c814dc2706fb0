"""The same global batches for every number of ranks and workers, every storage form, packed or not, after any stop."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batch_layout import LayoutOptions
from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import load_model
from scripts.media.pixel_store import PixelStore
from scripts.preprocess_images import write_pixels
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import LossModule
from scripts.training.feed import MicroBatchFeed
from scripts.training.plan_check import check_same_plans, differences, plan_facts
from tests.blends import write_blend
from tests.runs import TrainingSetup
from tests.scripts.blending.synthetic_blend import World

G = 8
MMCA = LayoutOptions("self", "sum", "sdpa", vocabulary=512)


@pytest.fixture(scope="module")
def processor(lab: TrainingSetup) -> VisualChatProcessor:
    return VisualChatProcessor.from_pretrained(lab.model)


@pytest.fixture(scope="module")
def packed(lab: TrainingSetup, tmp_path_factory) -> BlendReader:
    folder = tmp_path_factory.mktemp("packed")
    return BlendReader(
        write_blend(folder, 70, lab.bases["tokenizer"], pack=3, global_batch=G, tokens_identity="t"), folder
    )


def batches(readers, processor, rank=0, ranks=1, micro_batch=2, **options) -> MicroBatchDataset:
    return MicroBatchDataset(
        readers, processor, MMCA, global_batch=G, micro_batch=micro_batch, rank=rank, ranks=ranks, **options
    )


def documents(batch) -> list[tuple]:
    """Every conversation of a batch: its dataset, tokens, labels, and the pixels of its images."""
    found, tensors = [], batch.tensors
    ids = tensors.get("document_ids", (tensors["modality"] > 0).long())
    pixels, names = iter(tensors.get("pixel_values", ())), iter(batch.datasets)
    for row, kinds, labels, numbers in zip(
        tensors["input_ids"], tensors["modality"], tensors["labels"], ids, strict=True
    ):
        for number in range(1, int(numbers.max()) + 1):
            mine = numbers == number
            shown = int((kinds[mine] == 2).sum()) // 16
            images = tuple(next(pixels).numpy().tobytes() for _ in range(shown))
            found.append((next(names), tuple(row[mine].tolist()), tuple(labels[mine].tolist()), images))
    assert next(pixels, None) is None and next(names, None) is None
    return [document for document in found if document[0]]


def global_batch(parts: list[MicroBatchDataset], step: int, feeds=None) -> list[tuple]:
    """The conversations of a step, of all ranks, rank by rank."""
    found = []
    for rank, part in enumerate(parts):
        for micro in range(part.accumulation):
            found += documents(next(feeds[rank]) if feeds else part[step * part.accumulation + micro])
    return found


@pytest.fixture(scope="module")
def expected(packed, processor) -> list[list[tuple]]:
    """The sorted conversations of every step, from one rank without workers."""
    whole = batches([packed], processor, micro_batch=G)
    return [sorted(documents(whole[step])) for step in range(whole.steps)]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_and_workers_do_not_change_a_global_batch(packed, processor, expected, ranks, workers):
    parts = [batches([packed], processor, rank, ranks) for rank in range(ranks)]
    feeds = [part.load(0, workers) for part in parts]
    found = [sorted(global_batch(parts, step, feeds)) for step in range(parts[0].steps)]
    assert found == expected
    assert all(next(feed, None) is None for feed in feeds)


@pytest.mark.parametrize("seed", range(4))
def test_stopped_anywhere_and_continued_on_other_ranks_nothing_comes_twice_or_never(packed, processor, expected, seed):
    chooser = random.Random(seed)
    step, seen = 0, []
    while step < len(expected):
        ranks, stop = chooser.choice([1, 2, 4, 8]), min(len(expected), step + chooser.randint(1, 2))
        parts = [batches([packed], processor, rank, ranks, chooser.randint(1, 4)) for rank in range(ranks)]
        feeds = [part.load(step, chooser.choice([0, 1])) for part in parts]
        # Prepared ahead but not trained on: the next start must bring it again.
        ahead = chooser.randint(0, 1)
        found = [global_batch(parts, at, feeds) for at in range(step, min(len(expected), stop + ahead))]
        seen += [sorted(batch) for batch in found[: stop - step]]
        step = stop
    assert seen == expected
    assert len([document for batch in seen for document in batch]) == 70


def test_a_packed_row_holds_its_unit_and_documents_are_separate(packed, processor):
    batch = batches([packed], processor)[0]
    ids = batch.tensors["document_ids"]
    assert ids.shape == batch.tensors["input_ids"].shape and ids.max() == 3
    assert torch.equal(ids > 0, batch.tensors["modality"] > 0)
    lengths = [len(processor.encode(packed[position].messages)) for unit in (0, 1) for position in packed.members(unit)]
    assert [int((row == number).sum()) for row in ids for number in (1, 2, 3)] == lengths
    assert batch.datasets == [packed[position].dataset for position in range(6)]
    assert batch.tokens == sum(lengths) == int((ids > 0).sum())


@pytest.mark.parametrize("attention", ["mmca", "causal", "dattn"])
def test_packed_and_unpacked_give_the_same_loss_per_conversation(lab, processor, tmp_path, attention):
    readers = [
        BlendReader(write_blend(tmp_path / str(pack), 14, lab.bases["tokenizer"], pack=pack), tmp_path)
        for pack in (1, 4)
    ]
    model, _ = load_model(lab.model, lab.root, attention, check=False)
    assert isinstance(model, VisualChatForConditionalGeneration)
    found = []
    for reader in readers:
        options = model.layout_options()
        part = MicroBatchDataset([reader], processor, options, global_batch=100, micro_batch=100)[0]
        with torch.no_grad():
            total, each = LossModule(model.eval())(**MicroBatchFeed([part], model.device).take().inputs)
        losses = torch.zeros(len(part.datasets), dtype=torch.float64).index_add(0, part.index.documents, each)
        assert len(losses) == len(part.datasets) == 14
        assert float(losses.sum()) == pytest.approx(float(total), rel=1e-5)
        found.append((losses, part.datasets, part.labels))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    assert found[0][1:] == found[1][1:]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def store(world, lab) -> list[Path]:
    manifests = []
    for shard in sorted(world.media["coco"].glob("*.tar")):
        write_pixels(str(lab.bases["vision"]), "coco", world.media["coco"], shard.stem, world.root / "pixels")
        manifests.append(world.root / "pixels" / f"{shard.stem}.json")
    return manifests


@pytest.mark.parametrize("packing", [False, True])
def test_embedded_referenced_and_the_pixel_store_give_the_same_batches(world, lab, processor, store, packing):
    from scripts.media.pixel_store import pixels_key

    model_processor = VisualChatProcessor.from_base_models(lab.bases["vision"], world.tokenizer, processor.image_tokens)
    pixels = PixelStore(store, pixels_key(processor.image_processor.to_dict()))
    plan = world.plan(packing=packing, sequence=900)
    readers = {}
    for form in ("embedded", "referenced"):
        world.blend(plan, world.root / f"blend/{form}-{packing}", images=form)
        readers[form] = BlendReader(world.root / f"blend/{form}-{packing}", world.root)
    made = [
        batches([readers["embedded"]], model_processor),
        batches([readers["referenced"]], model_processor),
        batches([readers["referenced"]], model_processor, pixels=pixels),
        batches([readers["embedded"]], model_processor, pixels=pixels),
    ]
    first = list(made[0].load(0, 0))
    assert len(first) > 10 and any("pixel_values" in batch.tensors for batch in first)
    for other, workers in zip(made[1:], (0, 2, 0), strict=True):
        for one, two in zip(first, other.load(0, workers), strict=True):
            assert one.tensors.keys() == two.tensors.keys() and one.datasets == two.datasets
            assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())


def test_another_plan_is_refused_and_what_changed_is_named(world, lab, processor, tmp_path):
    def facts(name, **changes):
        out = tmp_path / name
        world.blend(world.plan(**changes), out, shards=1)
        return BlendReader(out, world.root)

    begun = facts("begun")
    saved = [plan_facts(begun)]
    check_same_plans(saved, [begun], "the checkpoint")
    stored = tmp_path / "stored"
    world.blend(world.plan(), stored, images="referenced", shards=2)
    check_same_plans(saved, [BlendReader(stored, world.root)], "the checkpoint")
    for changes, words in (
        ({"seed": 7}, ["seed was 0 and is 7"]),
        ({"packing": True, "max_images_per_pack": 9}, ["packing was False and is True", "units was"]),
        ({"datasets": world.entries | {"llava": {"concat": 2}}}, ["datasets.llava.concat was 3 and is 2"]),
        ({"datasets": {name: world.entries[name] for name in world.entries if name != "aokvqa"}}, ["aokvqa is gone"]),
    ):
        with pytest.raises(UserError, match="the checkpoint was made with another plan of epoch 0") as error:
            check_same_plans(saved, [facts("other", **changes)], "the checkpoint")
        assert all(word in str(error.value) for word in words), error.value
    with pytest.raises(UserError, match="a run of 1 epochs, not of 2"):
        check_same_plans(saved, [begun, begun], "the checkpoint")
    world.plan()
    assert differences(saved[0], saved[0]) == ""


def test_crops_are_those_of_the_processor(world, processor, store):
    from scripts.media.opening import open_image
    from scripts.media.pixel_store import pixels_key
    from scripts.media.store import MediaStore

    pixels, media = PixelStore(store, pixels_key(processor.image_processor.to_dict())), MediaStore(world.media)
    import pyarrow.parquet as pq

    rows = pq.read_table(world.media["coco"] / "index.parquet").to_pylist()
    assert len(pixels) == len(rows) > 30
    for row in rows[::5]:
        with open_image(media.read("coco", row["key"])) as picture:
            assert np.array_equal(pixels.get(row["sha256"]), processor.preprocess_image(picture))
    with pytest.raises(UserError, match="lacks the image with the sha256 00"):
        pixels.get("0" * 64)
