"""The formula counts what PyTorch multiplies, where nothing is padded, and knows what a device can do."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.common.errors import UserError
from scripts.config.run import RunConfig
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import load_model
from scripts.training import flops
from scripts.training.dataset import MicroBatchDataset, count_pairs
from scripts.training.engine import LossModule
from scripts.training.feed import MicroBatchFeed
from scripts.training.flops import Flops
from scripts.training.trainable import mark_trainable
from tests.runs import TrainingSetup
from tests.tiny_models import IMAGE_TOKENS


@pytest.mark.parametrize(
    "options",
    [{"train_language": "full"}, {}, {"train_language": "full", "train_vision": "full"}, {"features": True}],
    ids=str,
)
def test_the_formula_agrees_with_what_is_multiplied(lab: TrainingSetup, options: dict):
    settings = RunConfig(model="m", blend="b", **options)
    model, processor = load_model(lab.model, lab.root, "mmca", torch.float32, check=False)
    mark_trainable(model, settings)
    reader = BlendReader(lab.blends[0], lab.root)
    batches = MicroBatchDataset([reader], processor, model.layout_options(), global_batch=1, micro_batch=1)
    batch = next(batches[n] for n in range(len(batches)) if len(batches[n].tensors.get("pixel_values", ())) == 2)
    formula, pixels = Flops(model, settings.features), batch.tensors["pixel_values"]
    if settings.features:
        batch.tensors["image_features"] = model.vision_tower(batch.tensors.pop("pixel_values")).detach()
    with FlopCounterMode(display=False) as counter:
        LossModule(model.train())(**MicroBatchFeed([batch], model.device).take().inputs)[0].backward()
    # PyTorch's counter knows nothing of attention on a CPU.
    assert formula.matrices(batch) == pytest.approx(counter.get_total_flops(), rel=0.05)
    if settings.features:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.vision_tower(pixels)
        attention = 4 * IMAGE_TOKENS**2 * 2 * 32
        assert formula.encoder - attention == pytest.approx(counter.get_total_flops() / 2, rel=0.05)


def test_attention_costs_what_is_looked_at(lab: TrainingSetup):
    """Two layers of width 32; a text token sees all before it, an image token in MMCA itself."""
    model, processor = load_model(lab.model, lab.root, "mmca", torch.float32, check=False)
    modality = torch.tensor([[1, 2, 2, 1, 0], [1, 1, 1, 1, 1]])
    documents = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 2, 2, 2]])
    pairs = count_pairs(modality, documents, "self")
    assert pairs == (1 + 1 + 1 + 4) + (1 + 2) + (1 + 2 + 3)
    assert count_pairs(modality, documents, "causal") == pairs + 1 + 2
    batches = MicroBatchDataset(
        [BlendReader(lab.blends[0], lab.root)], processor, model.layout_options(), global_batch=1, micro_batch=1
    )
    batch, count = batches[0], Flops(model)
    assert count.of(replace(batch, pairs=batch.pairs + pairs)) - count.of(batch) == 12 * 2 * 32 * pairs


def test_a_filler_costs_nothing(lab: TrainingSetup):
    model, processor = load_model(lab.model, lab.root, "mmca", torch.float32, check=False)
    batches = MicroBatchDataset(
        [BlendReader(lab.blends[0], lab.root)], processor, model.layout_options(), global_batch=4, micro_batch=4
    )
    assert Flops(model).of(batches.filler()) == 0 < Flops(model).of(batches[0])


def test_the_peak_comes_from_the_variable_or_is_unknown(monkeypatch):
    monkeypatch.delenv(flops.VARIABLE, raising=False)
    if not torch.cuda.is_available():
        assert flops.peak_flops(8) is None
    monkeypatch.setenv(flops.VARIABLE, "312e12")
    assert flops.peak_flops(2) == 624e12
    for bad in ("fast", "-1", "nan"):
        monkeypatch.setenv(flops.VARIABLE, bad)
        with pytest.raises(UserError, match="operations per second"):
            flops.peak_flops(1)
