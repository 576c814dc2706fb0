"""A decoder in 4 bits computes with its rounded weights, keeps all else, and is the same from every place it is loaded.

Where bitsandbytes is not installed, only what needs no library is tested.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from model.modeling import VisualChatForConditionalGeneration
from scripts.common.errors import UserError
from scripts.config.run import RunConfig
from scripts.inference.blend_reader import BlendReader
from scripts.inference.lora import add_adapters
from scripts.inference.model_assembly import load_model
from scripts.inference.model_loading import load_model as load_exported
from scripts.inference.quantization import (
    BYTES_PER_NF4_WEIGHT,
    check_bitsandbytes,
    is_quantized,
    linear_layers,
    n_quantizable,
    quantize_decoder,
)
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import LossModule
from scripts.training.feed import MicroBatchFeed
from scripts.training.flops import Flops
from scripts.training.trainable import mark_trainable, parameter_table
from tests.runs import TrainingSetup
from tests.tiny_models import make_model

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
CPU = torch.device("cpu")
QLORA = RunConfig(model="m", blend="b", train_language="lora", language_lora_rank=4, quantize="nf4")


def quantized(lab: TrainingSetup, dtype: torch.dtype = torch.float32) -> tuple:
    """The model as training loads it, and its processor."""
    model, processor = load_model(lab.model, lab.root, "mmca", dtype, check=False, keep_language_dtype=True)
    quantize_decoder(model, CPU, dtype)
    return model, processor


def dequantized(model: VisualChatForConditionalGeneration) -> None:
    """Replace every quantised layer by a plain one that holds its rounded weights."""
    from bitsandbytes.functional import dequantize_4bit

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if is_quantized(layer):
                plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=model.dtype)
                plain.weight = nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state), False)
                setattr(parent, name, plain)


def batches(lab: TrainingSetup, model, processor) -> list:
    reader = BlendReader(lab.blends[0], lab.root)
    dataset = MicroBatchDataset([reader], processor, model.layout_options(), global_batch=4, micro_batch=4)
    return [dataset[number] for number in range(3)]


def test_a_missing_library_is_named_with_the_command_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs bitsandbytes: run `pip install bitsandbytes`, or leave"):
        check_bitsandbytes("`quantize: nf4`", "leave it out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_language": "full"}, "set train_language: lora"),
        ({"zero": 3}, "needs zero 0, 1 or 2"),
        ({"compile": True}, "set compile: false"),
        ({"train_language": "frozen", "train_embeddings": False, "train_projector": False}, "nothing to train"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(QLORA.model_dump() | changes)


def test_only_a_quantised_run_has_another_fingerprint():
    plain = RunConfig.model_validate(QLORA.model_dump() | {"quantize": "none"})
    assert "quantize" not in plain.numbers() and QLORA.numbers()["quantize"] == "nf4"


def test_a_decoder_whose_weights_lie_elsewhere_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=50))
        model.model.experts = nn.ParameterList([nn.Parameter(torch.empty(9, 64, 64))])
    with pytest.raises(UserError, match=r"only \d+% of the weights of LlamaModel lie in linear layers"):
        quantize_decoder(model, CPU, torch.float32)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_layers_of_the_decoder_are_packed_and_nothing_else(lab: TrainingSetup, dtype: torch.dtype):
    plain, _ = load_model(lab.model, lab.root, "mmca", dtype, check=False)
    model, _ = quantized(lab, dtype)
    packed = {name for name, module in model.named_modules() if is_quantized(module)}
    prefix = "language_model.model."
    assert packed == {prefix + name for name in linear_layers(plain.get_decoder())} and len(packed) == 2 * 7
    expected = dict(plain.named_parameters())
    for name, value in model.named_parameters():
        if name.removesuffix(".weight") not in packed:
            assert torch.equal(value, expected[name]), name
    # What the estimate counts, but for the tables of levels, of which every layer has its own.
    counted = n_quantizable(plain.get_decoder()) * BYTES_PER_NF4_WEIGHT
    tables = len(packed) * (16 + 256 + 1) * 4
    states = [layer.weight.quant_state for layer in linear_layers(model.get_decoder()).values()]
    tensors = [t for s in states for t in (s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code)]
    held = sum(value.nbytes for value in model.parameters() if value.dtype == torch.uint8)
    held += sum(tensor.nbytes for tensor in tensors)
    # The last group of 256 scales of a layer is not full in so small a model.
    assert counted <= held - tables <= counted + 4 * len(packed)


@needs_bitsandbytes
def test_it_becomes_the_same_bytes_every_time(lab: TrainingSetup):
    once, again = (quantized(lab)[0] for _ in range(2))
    for (name, one), (other, two) in zip(once.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and torch.equal(one, two)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("language", ["frozen", "lora"])
def test_loss_and_gradients_are_those_of_the_dequantised_weights(lab: TrainingSetup, dtype, language: str):
    precision = "fp32" if dtype == torch.float32 else "bf16"
    settings = QLORA.model_copy(update={"train_language": language, "precision": precision})
    found = []
    for change in (lambda model: None, dequantized):
        model, processor = quantized(lab, dtype)
        change(model)
        mark_trainable(model, settings)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        with torch.no_grad():
            for number, value in enumerate(trained.values()):
                # Adapters begin at zero, where those of A have no gradient.
                value += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number))
        for batch in batches(lab, model.train(), processor):
            LossModule(model)(**MicroBatchFeed([batch], CPU).take().inputs)[0].backward()
        found.append({name: value.grad for name, value in trained.items()})
    assert found[0].keys() == found[1].keys() and any("lora_A" in name for name in found[0]) == (language == "lora")
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for name, gradient in found[0].items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, found[1][name], **near, msg=lambda text, name=name: f"{name}: {text}")


@needs_bitsandbytes
def test_the_table_and_the_operations_count_packed_weights_whole(lab: TrainingSetup):
    tables, costs = [], []
    for settings in (QLORA.model_copy(update={"quantize": "none"}), QLORA):
        model, _ = load_model(lab.model, lab.root, "mmca", check=False)
        if settings.quantize != "none":
            quantize_decoder(model, CPU, torch.float32)
        mark_trainable(model, settings)
        tables.append(parameter_table(model, settings))
        costs.append(Flops(model).count(tokens=1))
    assert costs[0] == costs[1]
    assert "lora, nf4" in tables[1] and "nf4" not in tables[0]
    assert tables[0].split() == tables[1].replace("lora, nf4", "lora").split()


@needs_bitsandbytes
def test_a_part_with_plain_layers_gets_plain_adapters_beside_a_quantised_one(lab: TrainingSetup):
    model, _ = quantized(lab)
    add_adapters(model.vision_tower.encoder, 2, 1.0, 0.0, torch.float32)
    add_adapters(model.get_decoder(), 2, 1.0, 0.0, torch.float32)
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    assert {kind for name, kind in kinds.items() if name.startswith("vision")} == {"Linear"}
    assert {kind for name, kind in kinds.items() if name.startswith("language")} == {"Linear4bit"}


@needs_bitsandbytes
@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_model_in_4_bits_has_the_layers_and_bytes_of_training(tmp_path: Path, tied: bool):
    folder = make_model(tmp_path)
    if not tied:
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(config))
        whole = VisualChatForConditionalGeneration.from_pretrained(folder, output_loading_info=True)[0]
        whole.save_pretrained(folder)
    whole, _ = load_exported(folder, "cpu")
    model, _ = load_exported(folder, "cpu", bits=4)
    quantize_decoder(whole, CPU, torch.float32)
    layers = {name: module for name, module in whole.named_modules() if is_quantized(module)}
    packed = {name: module for name, module in model.named_modules() if is_quantized(module)}
    assert packed.keys() == layers.keys() and len(packed) == 2 * 7
    for name, layer in packed.items():
        one, two = layer.weight, layers[name].weight
        assert torch.equal(one.data, two.data) and torch.equal(one.quant_state.absmax, two.quant_state.absmax)
        assert one.quant_state.dtype == two.quant_state.dtype == layer.compute_dtype == torch.float32
    assert not is_quantized(model.get_output_embeddings())
