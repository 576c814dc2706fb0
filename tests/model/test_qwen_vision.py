"""Qwen-VL's encoder against an oracle written from its description, parameter by parameter, at small width."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from model.configuration import QwenVisionConfig
from model.qwen_vision import QwenVisionModel

SMALL = {
    "image_size": 48,
    "patch_size": 8,
    "vit_width": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "positions": 16,
    "hidden_size": 16,
    "resampler_queries": 4,
    "resampler_heads": 2,
}


def oracle(weights: dict[str, torch.Tensor], pixels: torch.Tensor, config: QwenVisionConfig) -> torch.Tensor:
    """The encoder with nothing but loops and matrix products, one image at a time: (N, queries, hidden_size)."""

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attend(query, key, value):
        return (query @ key.T / math.sqrt(query.shape[-1])).softmax(-1) @ value

    def positions(table, count):
        old, new = math.isqrt(len(table)), math.isqrt(count)
        if old == new:
            return table
        grid = table.reshape(old, old, -1).permute(2, 0, 1)[None]
        return F.interpolate(grid, (new, new), mode="bicubic")[0].flatten(1).T

    out = []
    for image in pixels:
        size, patches = config.patch_size, []
        for top in range(0, image.shape[1], size):
            for left in range(0, image.shape[2], size):
                patch = image[:, top : top + size, left : left + size].flatten()
                patches.append(weights["conv1.weight"].flatten(1) @ patch)
        x = torch.stack(patches)
        x = norm(x + positions(weights["positional_embedding"], len(x)), "ln_pre")
        for number in range(config.num_hidden_layers):
            block = f"transformer.resblocks.{number}"
            mixed = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj")
            # Each head holds its query, key and value.
            heads = [attend(*head.chunk(3, -1)) for head in mixed.chunk(config.num_attention_heads, -1)]
            x = x + linear(torch.cat(heads, -1), f"{block}.attn.out_proj")
            inner = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            x = x + linear(inner, f"{block}.mlp.c_proj")

        grid = weights["attn_pool.pos_embed"]
        values = norm(x @ weights["attn_pool.kv_proj.weight"].T, "attn_pool.ln_kv")
        queries = norm(weights["attn_pool.query"], "attn_pool.ln_q") + grid
        inputs = (queries, values + positions(grid, len(values)), values)
        three = zip(inputs, weights["attn_pool.attn.in_proj_weight"].chunk(3), strict=True)
        biases = weights["attn_pool.attn.in_proj_bias"].chunk(3)
        query, key, value = (y @ w.T + b for (y, w), b in zip(three, biases, strict=True))
        parts = zip(*(y.chunk(config.resampler_heads, -1) for y in (query, key, value)), strict=True)
        pooled = linear(torch.cat([attend(*part) for part in parts], -1), "attn_pool.attn.out_proj")
        out.append(norm(pooled, "ln_post"))
    return torch.stack(out)


@pytest.fixture(scope="module")
def model() -> QwenVisionModel:
    torch.manual_seed(0)
    model = QwenVisionModel(QwenVisionConfig(**SMALL)).double().eval()
    with torch.no_grad():  # initial weights are too small, and initial norms too simple, to reveal errors
        for value in (*model.parameters(), *model.buffers()):
            value.copy_(torch.randn_like(value) * 0.4 + 0.1)
    return model


PIXELS = torch.randn(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_it_equals_the_oracle(model):
    weights = dict(model.state_dict())
    with torch.no_grad():
        out = model(PIXELS)
        assert out.last_hidden_state.shape == (2, 4, 16) and out.hidden_states is None
        torch.testing.assert_close(out.last_hidden_state, oracle(weights, PIXELS, model.config), rtol=1e-9, atol=1e-9)
        small = PIXELS[..., :32, :32]  # as many positions as were learned: nothing is interpolated
        torch.testing.assert_close(
            model(small).last_hidden_state, oracle(weights, small, model.config), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", QwenVisionModel(QwenVisionConfig(**SMALL)).state_dict())
def test_every_parameter_does_what_it_does_in_the_oracle(model, name):
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    changed = dict(weights)
    changed[name] = weights[name] + torch.randn(weights[name].shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before = oracle(weights, PIXELS[:1], model.config)
        expected = oracle(changed, PIXELS[:1], model.config)
        model.load_state_dict(changed)
        actual = model(PIXELS[:1]).last_hidden_state
        model.load_state_dict(weights)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert (expected - before).abs().max() > 1e-3, "the parameter must matter"


def test_it_has_the_size_and_the_names_of_the_published_encoder():
    with torch.device("meta"):
        model = QwenVisionModel(QwenVisionConfig())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["conv1.weight"] == (1664, 3, 14, 14) and shapes["positional_embedding"] == (256, 1664)
    assert shapes["transformer.resblocks.47.attn.in_proj.weight"] == (3 * 1664, 1664)
    assert shapes["transformer.resblocks.47.mlp.c_fc.weight"] == (8192, 1664)
    assert shapes["attn_pool.query"] == shapes["attn_pool.pos_embed"] == (256, 4096)
    assert shapes["attn_pool.kv_proj.weight"] == (4096, 1664) and shapes["ln_post.weight"] == (4096,)
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(1.9e9, rel=0.02)


def test_gradient_checkpointing_and_hidden_states():
    torch.manual_seed(0)
    model = QwenVisionModel(QwenVisionConfig(**SMALL)).train()
    pixels = PIXELS.float()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        out = model(pixels, output_hidden_states=True)
        assert len(out.hidden_states) == 3 and out.hidden_states[0].shape == (2, 36, 24)
        out.last_hidden_state.sum().backward()
        gradients.append([value.grad.clone() for value in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
