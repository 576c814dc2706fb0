"""Runs with `quantize: nf4`: the same after kills and on any number of ranks; what is exported of them, and how near.

Needs bitsandbytes, which is optional.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.export import export
from scripts.inference.model_loading import load_model as load_exported
from scripts.inference.quantization import is_quantized
from tests.runs import TrainingSetup, finished, lines_written, metrics, state_of, wait_until
from tests.scripts.test_export import heldout_loss

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
]
QLORA = {"quantize": "nf4", "train_language": "lora", "language_lora_rank": 4, "train_embeddings": False}


@pytest.fixture(scope="module")
def quantized(lab: TrainingSetup) -> Path:
    status, output = lab.train(lab.root / "train/quantized", **QLORA)
    assert status == 0, output
    assert "lora, nf4" in output
    return lab.root / "train/quantized"


def test_only_adapters_and_projector_are_trained_and_stored(quantized: Path):
    trained = load_file(quantized / finished(quantized)["final"]["weights"])
    assert all(name.startswith("projector.") or "lora_" in name for name in trained)
    assert finished(quantized)["curve"]["last_loss"] < finished(quantized)["curve"]["first_loss"]


def test_killed_it_ends_with_the_same_losses_and_weights(lab: TrainingSetup, quantized: Path):
    out = lab.root / "train/quantized_killed"
    process = lab.start(out, **QLORA)
    wait_until(process, lambda: lines_written(out) >= 9)
    process.kill()
    process.wait()
    status, output = lab.train(out, **QLORA)
    assert status == 0 and "continuing after step" in output, output
    assert metrics(out) == metrics(quantized)
    for which in ("final", "best"):
        path = finished(out)[which]["weights"]
        assert (out / path).read_bytes() == (quantized / path).read_bytes()


@pytest.mark.parametrize("zero", [0, 1])
def test_one_rank_has_the_losses_of_two_at_every_stage(lab: TrainingSetup, quantized: Path, zero: int):
    out = lab.root / f"train/quantized_alone_{zero}"
    status, output = lab.train(out, ranks=1, zero=zero, micro_batch=3, gradient_checkpointing=True, **QLORA)
    assert status == 0, output
    assert state_of(out).name == state_of(quantized).name
    for one, two in zip(metrics(out), metrics(quantized), strict=True):
        for name in {"loss", "grad_norm", "heldout_loss"} & set(one):
            assert one[name] == pytest.approx(two[name], rel=1e-5)


def test_in_bf16_only_the_projector(lab: TrainingSetup):
    """The decoder is frozen and quantised; embeddings and head keep their format."""
    out = lab.root / "train/quantized_bf16"
    changes = {"quantize": "nf4", "train_language": "frozen", "train_embeddings": False, "precision": "bf16"}
    status, output = lab.train(out, **changes)
    assert status == 0, output
    assert "frozen, nf4" in output
    assert finished(out)["curve"]["last_loss"] < finished(out)["curve"]["first_loss"]


@pytest.fixture(scope="module")
def slim(lab: TrainingSetup, quantized: Path) -> Path:
    export(quantized, lab.model, lab.root, lab.root / "exported/quantized_slim", form="delta")
    return lab.root / "exported/quantized_slim"


@pytest.mark.parametrize("which", ["final", "best"])
def test_a_delta_in_4_bits_is_the_model_that_was_trained(lab: TrainingSetup, quantized: Path, slim: Path, which: str):
    model, processor = load_exported(slim / which, "cpu", bits=4)
    assert sum(is_quantized(module) for module in model.modules()) == 14
    assert heldout_loss(lab, model, processor) == pytest.approx(finished(quantized)[which]["heldout_loss"], rel=1e-5)


def test_its_answers_do_not_depend_on_the_cache(slim: Path):
    from tests.tiny_models import user

    model, processor = load_exported(slim / "final", "cpu", bits=4)
    inputs = processor.apply_chat_template([user("What is on the left?")], tokenize=True, return_dict=True)
    inputs = {name: torch.as_tensor(value) for name, value in inputs.items()}
    answers = [model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*answers)


def test_merged_into_the_original_weights_it_is_near_and_nearer_to_the_base(
    lab: TrainingSetup, quantized: Path, slim: Path
):
    """A full export and a delta in all bits hold no rounded weight; the trained model is rounding away from both."""
    export(quantized, lab.model, lab.root, lab.root / "exported/quantized")
    whole, processor = load_exported(lab.root / "exported/quantized/final", "cpu")
    unrounded, _ = load_exported(slim / "final", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), unrounded.parameters(), strict=True))
    measured = finished(quantized)["final"]["heldout_loss"]
    assert heldout_loss(lab, whole, processor) == pytest.approx(measured, rel=0.02)
    assert heldout_loss(lab, whole, processor) != pytest.approx(measured, rel=1e-6)


def test_what_an_earlier_stage_has_merged_is_rounded_after_that(lab: TrainingSetup, quantized: Path):
    """A run in 4 bits after one with adapters of another rank; as a delta it holds both."""
    first, out = lab.root / "train/unquantized", lab.root / "train/after_adapters"
    status, output = lab.train(first, **QLORA | {"quantize": "none"})
    assert status == 0, output
    assert state_of(first).name != state_of(quantized).name
    losses = [finished(run)["curve"]["last_loss"] for run in (first, quantized)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)

    settings = QLORA | {"language_lora_rank": 2, "start": "tiny"}
    process = lab.start(out, flags=["--start", str(first)], **settings)
    output = process.communicate()[1]
    assert process.returncode == 0, output
    export(out, lab.model, lab.root, lab.root / "exported/after_adapters", form="delta")
    model, processor = load_exported(lab.root / "exported/after_adapters/final", "cpu", bits=4)
    assert heldout_loss(lab, model, processor) == pytest.approx(finished(out)["final"]["heldout_loss"], rel=1e-5)
    begun = finished(out)["curve"]["heldout"][0][1]
    assert begun == pytest.approx(finished(first)["curve"]["heldout"][-1][1], rel=0.02), "the first stage is not lost"
