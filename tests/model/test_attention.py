"""The fast attention equals the formula: a float64 oracle, forward and backward, over drawn layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

from model import varlen
from model.attention import attend
from model.attention_plan import SWITCHES, AttentionPlan
from model.documents import IMAGE, PAD, TEXT
from model.modeling import compute_position_ids
from tests.model.attention_cases import (
    CASES,
    HEADS,
    WIDTH,
    document_ids,
    modality,
    oracle,
    packed_rows,
    pad,
    reference_varlen_attn,
    rows,
    tensors,
)

ALL_SWITCHES = [{"image_rows": rows, "merge": merge} for rows in ("self", "causal") for merge in ("sum", "lse")]


@pytest.fixture(params=["sdpa", "varlen", "varlen of an older torch", "weights"])
def backend(request, monkeypatch) -> dict:
    """Options of a layout for each back-end. Varlen needs a GPU, so its kernel is replaced by its definition."""
    if request.param.startswith("varlen"):
        monkeypatch.setattr(varlen, "varlen_attn", reference_varlen_attn)
        monkeypatch.setattr(varlen.VarlenFlash, "runs", staticmethod(lambda *args: True))
        if "older" in request.param:  # its kernel had no option for grouped heads
            monkeypatch.setattr(varlen, "_OPTIONS", frozenset({"window_size"}))
        return {"backend": "varlen"}
    return {"weights": True} if request.param == "weights" else {"backend": request.param}


def check_against_oracle(texts: list[str], groups: int, switches: dict, backend: dict) -> None:
    kinds, ids = modality(texts), document_ids(texts)
    real = (kinds != PAD)[:, :, None, None]
    inputs = tensors(kinds, groups)
    attention_plan = AttentionPlan.build(kinds, document_ids=ids, **switches, **backend)
    out, weights = attend(None, *inputs, **switches, scaling=WIDTH**-0.5, attention_plan=attention_plan)
    expected = oracle(*inputs, kinds, ids, **switches)
    torch.testing.assert_close(out * real, expected * real, rtol=1e-10, atol=1e-10)
    if weights is not None:
        value = inputs[2].repeat_interleave(HEADS // groups, 1)
        torch.testing.assert_close((weights @ value).transpose(1, 2) * real, expected * real, rtol=1e-10, atol=1e-10)

    sample = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype) * real
    gradients = torch.autograd.grad((out * sample).sum(), inputs, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad((expected * sample).sum(), inputs, allow_unused=True, materialize_grads=True)
    for gradient, target in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, target, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("texts", CASES.values(), ids=CASES)
@pytest.mark.parametrize("switches", ALL_SWITCHES, ids=lambda switches: "-".join(switches.values()))
def test_equals_oracle_on_named_layouts(texts, switches, backend):
    check_against_oracle(texts, HEADS, switches, backend)


drawn = given(
    texts=st.lists(st.one_of(rows, packed_rows), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    groups=st.sampled_from([1, 2, 4]),
    name=st.sampled_from(sorted(SWITCHES)),
)


@settings(max_examples=60, deadline=None)
@drawn
def test_equals_oracle_on_drawn_layouts(texts, side, groups, name):
    check_against_oracle(pad(texts, side), groups, SWITCHES[name], {"backend": "sdpa"})


@settings(max_examples=40, deadline=None)
@drawn
def test_the_varlen_plan_equals_oracle_on_drawn_layouts(texts, side, groups, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", reference_varlen_attn)
        patch.setattr(varlen.VarlenFlash, "runs", staticmethod(lambda *args: True))
        check_against_oracle(pad(texts, side), groups, SWITCHES[name], {"backend": "varlen"})


def test_documents_of_unlike_length_are_computed_in_several_blocks():
    """Padding a long and many short documents to the same length would waste most of the work."""
    texts = pad(["|".join(["t" * 700 + "i" * 40 + "t" * 20, *["tiit" * 4] * 30]), "tiit" * 8], "right")
    kinds, ids = modality(texts), document_ids(texts)
    attention_plan = AttentionPlan.build(kinds, document_ids=ids, **SWITCHES["mmca"])
    assert len(attention_plan.backend.blocks) > 1
    assert sum(block.rows * block.texts for block in attention_plan.backend.blocks) < 2 * int((kinds == TEXT).sum())
    inputs = [x.detach() for x in tensors(kinds, 1)]
    out, _ = attend(None, *inputs, **SWITCHES["mmca"], attention_plan=attention_plan)
    again = AttentionPlan.build(kinds, document_ids=ids, **SWITCHES["mmca"], weights=True)
    expected, _ = attend(None, *inputs, **SWITCHES["mmca"], attention_plan=again)
    real = (kinds != PAD)[:, :, None, None]
    torch.testing.assert_close(out * real, expected * real, rtol=1e-6, atol=1e-6)


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


@pytest.mark.parametrize("texts", [texts for name, texts in CASES.items() if "packed" not in name])
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("new", [1, 3])
def test_continuing_a_cache_equals_oracle(texts, name, new):
    check_continuing_against_oracle(texts, HEADS, name, new)


def check_continuing_against_oracle(texts: list[str], groups: int, name: str, new: int) -> None:
    kinds = modality(texts)
    query, key, value = tensors(kinds, groups, new)
    attention_plan = AttentionPlan.build(kinds, new, **SWITCHES[name])
    out, _ = attend(None, query, key, value, **SWITCHES[name], scaling=WIDTH**-0.5, attention_plan=attention_plan)
    real = (kinds[:, -new:] != PAD)[:, :, None, None]
    expected = oracle(query, key, value, kinds, None, **SWITCHES[name])
    torch.testing.assert_close(out * real, expected * real, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("texts", [texts for name, texts in CASES.items() if "packed" not in name])
def test_causal_equals_the_merge_of_two_branches_by_log_sum_exp(texts):
    """Both branches apart, each with its log-sum-exp, merged by sigmoid(lse_image - lse_text): one softmax over all."""
    kinds = modality(texts)
    query, key, value = tensors(kinds, HEADS)
    out, _ = attend(
        None, query, key, value, **SWITCHES["causal"], attention_plan=AttentionPlan.build(kinds, **SWITCHES["causal"])
    )

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


def token_ids(kinds: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randint(0, 64, kinds.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("texts", [["tiitiit", "ttiiiit"], ["...tiit", "tititit"]], ids=["full", "left"])
def test_cache_equals_full_forward(name, texts):
    """A prefill, a step of several tokens and single steps give the logits of one forward over everything."""
    kinds = modality([text + "tttitt" for text in texts])
    ids, positions = token_ids(kinds, 3), compute_position_ids(kinds)
    model = decoder(name).eval()
    with torch.no_grad():
        full = model(
            input_ids=ids, position_ids=positions, attention_plan=AttentionPlan.build(kinds, **SWITCHES[name])
        ).logits
        cache, parts = DynamicCache(config=model.config), []
        for start, stop in ((0, 7), (7, 11), (11, 12), (12, 13)):
            attention_plan = AttentionPlan.build(kinds[:, :stop], stop - start, **SWITCHES[name])
            step = {"input_ids": ids[:, start:stop], "position_ids": positions[:, start:stop]}
            parts.append(model(**step, past_key_values=cache, use_cache=True, attention_plan=attention_plan).logits)
    real = kinds != PAD
    torch.testing.assert_close(torch.cat(parts, 1)[real], full[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("case", ["different segments", "packed"])
def test_gradient_checkpointing_changes_nothing(name, case):
    kinds, ids = modality(CASES[case]), document_ids(CASES[case])
    tokens, gradients = token_ids(kinds, 4), []
    for checkpointing in (False, True):
        model = decoder(name).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        attention_plan = AttentionPlan.build(kinds, document_ids=ids, **SWITCHES[name])
        logits = model(input_ids=tokens, use_cache=False, attention_plan=attention_plan).logits
        F.cross_entropy(logits[kinds == TEXT], tokens[kinds == TEXT]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert attention_plan.calls == 2 * (1 + checkpointing)
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_a_layout_serves_several_devices():
    kinds = modality(CASES["packed"])
    attention_plan = AttentionPlan.build(kinds, document_ids=document_ids(CASES["packed"]), **SWITCHES["mmca"])
    away = attention_plan.to("meta")
    assert away.plan.slot.device.type == "meta" and attention_plan.backend.slot.device.type == "cpu"
    assert away is attention_plan.to("meta") and attention_plan.to("cpu") is attention_plan
    inputs = [x.to("meta") for x in tensors(kinds, 2)]
    assert attend(None, *inputs, **SWITCHES["mmca"], attention_plan=away)[0].shape == (*kinds.shape, HEADS, WIDTH)
    assert attention_plan.calls == away.calls == 1


def test_what_cannot_be_computed_is_refused():
    kinds = modality(["tiit"])
    inputs = tensors(kinds, HEADS)
    attention_plan = AttentionPlan.build(kinds, **SWITCHES["mmca"])
    with pytest.raises(ValueError, match="sliding_window"):
        attend(None, *inputs, **SWITCHES["mmca"], attention_plan=attention_plan, sliding_window=16)
    with pytest.raises(ValueError, match="mask of its own"):
        attend(None, *inputs, torch.ones(1, 1, 4, 4), **SWITCHES["mmca"], attention_plan=attention_plan)
    with pytest.raises(ValueError, match="where text and images lie"):
        attend(None, *inputs, **SWITCHES["mmca"])
    with pytest.raises(ValueError, match="modality of 5 tokens"):
        attend(
            None,
            *inputs,
            **SWITCHES["mmca"],
            attention_plan=AttentionPlan.build(modality(["tiitt"]), **SWITCHES["mmca"]),
        )
    with pytest.raises(ValueError, match="varlen back-end cannot compute .* on cpu"):
        AttentionPlan.build(kinds, **SWITCHES["mmca"], backend="varlen")
    with pytest.raises(ValueError, match="cannot continue a cache"):
        AttentionPlan.build(kinds, 1, document_ids=torch.ones_like(kinds), **SWITCHES["mmca"])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[1, 1, 2, 1]], "must lie together"),
        ([[1, 1, 2, 0]], "0 at padding and above 0 elsewhere"),
        ([[1, 1, 2]], "shape of the batch"),
    ],
)
def test_document_ids_that_do_not_fit_are_refused(ids, words):
    with pytest.raises(ValueError, match=words):
        AttentionPlan.build(modality(["tiit"]), document_ids=torch.tensor(ids), **SWITCHES["mmca"])
