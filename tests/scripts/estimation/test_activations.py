"""The estimate of activations is what autograd keeps: measured on tiny decoders, tensor by tensor."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from model.attention import attend
from model.attention_plan import SWITCHES, AttentionPlan
from model.documents import IMAGE, TEXT
from model.fused_attention import INTERPRETED
from model.label_loss import CHUNK_LOGITS
from scripts.config.run import RunConfig
from scripts.estimation.activations import activations, attention_bytes, kept_bytes, layer_bytes, tower_bytes
from scripts.training.checkpointed_layers import checkpoint_layers, repeated_layers
from scripts.training.precision import dtype_of
from scripts.training.trainable import mark_trainable
from tests.scripts.training.saved_tensors import SavedBytes
from tests.scripts.training.tiny_decoders import layer_sizes, tiny_batch, tiny_model, tiny_text

LAYERS, ROWS, LENGTH = 4, 2, 128
ADAPTERS = {"train_language": "lora", "language_lora_rank": 4}


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config], ids=["llama", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": 1},
        {"gradient_checkpointing": 2},
        {"gradient_checkpointing": 3},
        {"train_language": "full"},
        {"train_language": "full", "gradient_checkpointing": 2},
        ADAPTERS,
    ],
    ids=["frozen", "every layer", "every second", "every third", "full", "full, every second", "adapters"],
)
def test_decoder_layers_keep_what_is_estimated(kind, precision: str, settings: dict):
    run = RunConfig(model="m", blend="b", precision=precision, **settings)
    model = tiny_model(tiny_text(kind, layers=LAYERS))
    mark_trainable(model, run)
    model.to(dtype_of(precision)).train()
    checkpoint_layers(model, int(run.gradient_checkpointing))
    saved = SavedBytes(model.get_decoder())
    with saved.count():
        model(**tiny_batch(ROWS, LENGTH))
    sizes = layer_sizes(model, run, tokens=ROWS * LENGTH)
    inputs = ROWS * LENGTH * sizes.width * dtype_of(precision).itemsize
    expected = kept_bytes(LAYERS, sizes.every, layer_bytes(sizes, precision), inputs)
    assert saved.bytes["layer"] == pytest.approx(expected, rel=0.03)


@pytest.mark.skipif(not INTERPRETED, reason="needs triton and its interpreter (TRITON_INTERPRET=1)")
@pytest.mark.parametrize("attention", ["mmca", "dattn"])
def test_the_attention_keeps_what_is_estimated(attention: str):
    """Measured on the kernel itself, on a row of text behind an image of one token, so that both branches are there."""
    tokens = 64
    modality = torch.tensor([[IMAGE] + [TEXT] * tokens])
    plan = AttentionPlan.build(modality, **SWITCHES[attention], backend="triton", unpad=True)
    shapes = [(1, heads, tokens + 1, 16) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    kept = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.dtype != torch.int32:  # the spans, of all layers
            kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        attend(None, *inputs, **SWITCHES[attention], attention_plan=plan)
    sizes = layer_sizes(tiny_model(), RunConfig(model="m", blend="b", attention=attention), tokens=tokens)
    image = (2 * 4 + 2 * 2) * 16 * 2  # query, output, key, value of the image's token
    measured = sum(value.untyped_storage().nbytes() for value in kept.values()) - image
    assert measured == attention_bytes(sizes, "bf16")


def test_the_head_keeps_one_chunk_however_long_the_rows_are():
    sizes = replace(layer_sizes(tiny_model(), RunConfig(model="m", blend="b"), tokens=8192), vocabulary=152_000)
    more = replace(sizes, vocabulary=304_000)
    assert activations(sizes, "bf16") == activations(more, "bf16") > 10 * CHUNK_LOGITS
    few = replace(sizes, vocabulary=1000)
    assert activations(sizes, "bf16") - activations(few, "bf16") == 10 * (CHUNK_LOGITS - 8192 / 4 * 1000)


def test_a_layer_that_is_computed_again_is_whole_for_a_while():
    sizes = layer_sizes(tiny_model(layers=5), RunConfig(model="m", blend="b"), tokens=256)
    whole = layer_bytes(sizes, "bf16") + attention_bytes(sizes, "bf16")
    inputs = 256 * sizes.width * 2
    every = {n: activations(replace(sizes, every=n), "bf16") for n in (0, 1, 2, 3)}
    assert every[0] - every[1] == 4 * whole - 5 * inputs
    # Of layers 0, 2, 4 the last is whole beside all that is kept; of 0 and 3 each after a later one was given back.
    assert every[0] - every[2] == 2 * whole - 3 * inputs
    assert every[0] - every[3] == 2 * whole - 2 * inputs


def encoder_sizes(model, **settings):
    sizes = layer_sizes(model, RunConfig(model="m", blend="b", **settings), tokens=128)
    # The tiny encoder's class token is a sixteenth of its patches.
    return replace(sizes, images=8, tower_tokens=17)


@pytest.mark.parametrize("every", [0, 2])
def test_a_trained_encoder_keeps_what_is_estimated(every: int):
    model = tiny_model(encoder_layers=4).train()
    model.vision_tower.requires_grad_(True)
    checkpoint_layers(model, every)
    pixels = tiny_batch(rows=8)["pixel_values"]
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept, inside = {}, []
    layers = repeated_layers(model.vision_tower)
    layers[0].register_forward_pre_hook(lambda *_: inside.append(True))
    layers[-1].register_forward_hook(lambda *_: inside.clear())

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if inside and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model.vision_tower(pixels)
    sizes = encoder_sizes(model, train_vision="full", gradient_checkpointing=every)
    # The last of four layers keeps its tensors in both cases, so that none is computed again beside all others.
    assert sum(size for size, _ in kept.values()) == pytest.approx(tower_bytes(sizes, "fp32"), rel=0.1)


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_frozen_encoder_holds_at_its_most_what_is_estimated(layer: int):
    model = tiny_model(encoder_layers=6).eval()
    model.config.vision_feature_layer = model.vision_tower.layer = layer
    pixels = model.vision_tower.normalise(tiny_batch(rows=8)["pixel_values"])
    model.vision_tower(pixels)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.no_grad(), torch.profiler.profile(activities=cpu, profile_memory=True) as log:
        model.vision_tower(pixels)
    changes = [event.nbytes() for event in log.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = max(sum(changes[:number]) for number in range(len(changes)))
    assert held == pytest.approx(tower_bytes(encoder_sizes(model), "fp32"), rel=0.15)
