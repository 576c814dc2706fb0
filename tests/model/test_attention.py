"""The fast attention equals the formula: a float64 oracle, forward and backward, over drawn layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

from model.attention import IMAGE, PAD, SWITCHES, TEXT, Layout, attend

HEADS, WIDTH = 4, 8
CASES = {
    "text only": ["tttttt", "tttt.."],
    "image first": ["iitttt", "iiiitt"],
    "image last": ["ttttii", "tiiiii"],
    "adjacent images": ["tiitiitt", "iiiittit"],
    "one row without an image": ["ttttttt", "tiittii"],
    "padding right": ["tiitt...", "titititt"],
    "padding left": ["...tiitt", "titititt"],
    "images only": ["iiii", "iii."],
    "different segments": ["titititititi", "ttttttiiiitt", "tttttttttttt", "iit........."],
}
rows = st.text("tti", min_size=1, max_size=12)


def modality(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[".ti".index(letter) for letter in text] for text in texts])


def pad(texts: list[str], side: str) -> list[str]:
    width = max(map(len, texts))
    return [text.ljust(width, ".") if side == "right" else text.rjust(width, ".") for text in texts]


def tensors(kinds: torch.Tensor, groups: int, queries: int | None = None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(int(kinds.sum()) + kinds.numel())
    batch, length = kinds.shape
    shapes = ((HEADS, queries or length), (groups, length), (groups, length))
    return [
        torch.randn(batch, heads, size, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        for heads, size in shapes
    ]


def oracle(query, key, value, kinds, image_rows: str, merge: str) -> torch.Tensor:
    """The formula, query by query, in float64. Padding rows are 0."""
    batch, heads, length, width = query.shape
    repeats = heads // key.shape[1]
    total = key.shape[2]
    out = torch.zeros(batch, length, heads, width, dtype=query.dtype)
    result = [[[out[b, t, h] for h in range(heads)] for t in range(length)] for b in range(batch)]

    def softmax(b: int, h: int, t: int, places: list[int]) -> torch.Tensor:
        scores = key[b, h // repeats, places] @ query[b, h, t] * width**-0.5
        return scores.softmax(0) @ value[b, h // repeats, places]

    for b in range(batch):
        for t in range(length):
            place = total - length + t
            before = [j for j in range(place + 1) if kinds[b, j] != PAD]
            text = [j for j in before if kinds[b, j] == TEXT]
            image = [j for j in before if kinds[b, j] == IMAGE]
            for h in range(heads):
                if kinds[b, place] == PAD:
                    continue
                if kinds[b, place] == IMAGE:
                    row = value[b, h // repeats, place] if image_rows == "self" else softmax(b, h, t, before)
                elif merge == "lse":
                    row = softmax(b, h, t, before)
                else:
                    row = softmax(b, h, t, text) + (softmax(b, h, t, image) if image else 0)
                result[b][t][h] = row
    return torch.stack([torch.stack([torch.stack(row) for row in rows]) for rows in result])


def check_against_oracle(texts: list[str], groups: int, image_rows: str, merge: str) -> None:
    kinds = modality(texts)
    real = (kinds != PAD)[:, :, None, None]
    inputs = tensors(kinds, groups)
    layout = Layout.build(kinds, kinds)
    out, _ = attend(None, *inputs, image_rows=image_rows, merge=merge, scaling=WIDTH**-0.5, layout=layout)
    expected = oracle(*inputs, kinds, image_rows, merge)
    torch.testing.assert_close(out * real, expected * real, rtol=1e-10, atol=1e-10)

    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype) * real
    gradients = torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    for gradient, target in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, target, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("texts", CASES.values(), ids=CASES)
@pytest.mark.parametrize("merge", ["sum", "lse"])
@pytest.mark.parametrize("image_rows", ["self", "causal"])
def test_equals_oracle_on_named_layouts(texts, image_rows, merge):
    check_against_oracle(texts, HEADS, image_rows, merge)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(rows, min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    groups=st.sampled_from([1, 2, 4]),
    name=st.sampled_from(sorted(SWITCHES)),
)
def test_equals_oracle_on_drawn_layouts(texts, side, groups, name):
    check_against_oracle(pad(texts, side), groups, **SWITCHES[name])


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(rows, min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    groups=st.sampled_from([2, 4]),
    name=st.sampled_from(sorted(SWITCHES)),
    new=st.integers(1, 4),
)
def test_continuing_a_cache_equals_oracle_on_drawn_layouts(texts, side, groups, name, new):
    check_continuing_against_oracle(pad([text + "tttt" for text in texts], side), groups, name, new)


@pytest.mark.parametrize("texts", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("new", [1, 3])
def test_continuing_a_cache_equals_oracle(texts, name, new):
    check_continuing_against_oracle(texts, HEADS, name, new)


def check_continuing_against_oracle(texts: list[str], groups: int, name: str, new: int) -> None:
    kinds = modality(texts)
    query, key, value = tensors(kinds, groups, new)
    layout = Layout.build(kinds[:, -new:], kinds)
    out, _ = attend(None, query, key, value, **SWITCHES[name], scaling=WIDTH**-0.5, layout=layout)
    real = (kinds[:, -new:] != PAD)[:, :, None, None]
    expected = oracle(query, key, value, kinds, **SWITCHES[name])
    torch.testing.assert_close(out * real, expected * real, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("texts", CASES.values(), ids=CASES)
def test_causal_equals_the_merge_of_two_branches_by_log_sum_exp(texts):
    """Both branches apart, each with its log-sum-exp, merged by sigmoid(lse_image - lse_text): one softmax over all."""
    kinds = modality(texts)
    query, key, value = tensors(kinds, HEADS)
    out, _ = attend(None, query, key, value, **SWITCHES["causal"], layout=Layout.build(kinds, kinds))

    scores = query @ key.transpose(2, 3) * WIDTH**-0.5
    before = torch.ones(kinds.shape[1], kinds.shape[1], dtype=torch.bool).tril()
    branches = []
    for kind in (TEXT, IMAGE):
        allowed = (kinds == kind)[:, None, None] & before
        branch = scores.masked_fill(~allowed, -1e30)
        branches.append((branch.logsumexp(-1, keepdim=True), branch.softmax(-1) @ value))
    (lse_text, text), (lse_image, image) = branches
    share = (lse_image - lse_text).sigmoid()
    merged = (text + share * (image - text)).transpose(1, 2)
    real = (kinds != PAD)[:, :, None, None]
    torch.testing.assert_close(out * real, merged * real, rtol=1e-10, atol=1e-10)


def decoder(attention: str, kind: str = "llama"):
    """A random decoder of two layers with grouped heads."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=None,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "olmo2"])
@pytest.mark.parametrize("texts", [CASES["padding right"], CASES["padding left"], CASES["adjacent images"]])
def test_causal_equals_the_library(texts, kind):
    kinds = modality(texts)
    ids = torch.randint(0, 64, kinds.shape, generator=torch.Generator().manual_seed(2))
    positions = (kinds.ne(PAD).cumsum(1) - 1).clamp(min=0)
    layout = Layout.build(kinds, kinds)
    ours = decoder("causal", kind)(input_ids=ids, position_ids=positions, layout=layout).logits
    theirs = decoder("sdpa", kind)(input_ids=ids, position_ids=positions, attention_mask=kinds.ne(PAD).long()).logits
    assert layout.calls == 2
    torch.testing.assert_close(ours[kinds != PAD], theirs[kinds != PAD], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("texts", [["tiitiit", "ttiiiit"], ["...tiit", "tititit"]], ids=["full", "left"])
def test_cache_equals_full_forward(name, texts):
    """A prefill, a step of several tokens and single steps give the logits of one forward over everything."""
    kinds = modality([text + "tttitt" for text in texts])
    ids = torch.randint(0, 64, kinds.shape, generator=torch.Generator().manual_seed(3))
    positions = (kinds.ne(PAD).cumsum(1) - 1).clamp(min=0)
    model = decoder(name).eval()
    with torch.no_grad():
        full = model(input_ids=ids, position_ids=positions, layout=Layout.build(kinds, kinds)).logits
        cache, parts = DynamicCache(config=model.config), []
        for start, stop in ((0, 7), (7, 11), (11, 12), (12, 13)):
            layout = Layout.build(kinds[:, start:stop], kinds[:, :stop])
            step = {"input_ids": ids[:, start:stop], "position_ids": positions[:, start:stop]}
            parts.append(model(**step, past_key_values=cache, use_cache=True, layout=layout).logits)
    real = kinds != PAD
    torch.testing.assert_close(torch.cat(parts, 1)[real], full[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SWITCHES)
def test_gradient_checkpointing_changes_nothing(name):
    kinds = modality(CASES["different segments"])
    ids = torch.randint(0, 64, kinds.shape, generator=torch.Generator().manual_seed(4))
    gradients = []
    for checkpointing in (False, True):
        model = decoder(name).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        layout = Layout.build(kinds, kinds)
        logits = model(input_ids=ids, use_cache=False, layout=layout).logits
        F.cross_entropy(logits[kinds == TEXT], ids[kinds == TEXT]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert layout.calls == 2 * (1 + checkpointing)
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_what_the_decoder_asks_in_vain_is_refused():
    kinds = modality(["tiit"])
    inputs = tensors(kinds, HEADS)
    with pytest.raises(ValueError, match="sliding_window"):
        attend(None, *inputs, **SWITCHES["mmca"], layout=Layout.build(kinds, kinds), sliding_window=16)
    with pytest.raises(ValueError, match="where text and images lie"):
        attend(None, *inputs, **SWITCHES["mmca"])
    with pytest.raises(ValueError, match="modality of 5 tokens"):
        longer = modality(["tiitt"])
        attend(None, *inputs, **SWITCHES["mmca"], layout=Layout.build(longer, longer))
