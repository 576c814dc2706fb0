"""The fast attention equals the formula: a float64 oracle, forward and backward, over random batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

from model import attention_plan as attention_plan_module
from model import fused_attention
from model.attention import attend
from model.attention_plan import SWITCHES, AttentionPlan, choose_backend
from model.documents import IMAGE, PAD, TEXT, compute_position_ids
from tests.model.attention_cases import (
    CASES,
    HEADS,
    WIDTH,
    oracle,
    packed_rows,
    pad,
    parse_document_ids,
    parse_modality,
    rows,
    tensors,
)

ALL_SWITCHES = [{"image_rows": rows, "merge": merge} for rows in ("self", "causal") for merge in ("sum", "lse")]


needs_interpreter = pytest.mark.skipif(
    not fused_attention.INTERPRETED, reason="needs triton and its interpreter (TRITON_INTERPRET=1)"
)


@pytest.fixture(
    params=[
        {"backend": "sdpa"},
        {"backend": "sdpa", "unpad": True},
        {"weights": True},
        pytest.param({"backend": "triton"}, marks=[needs_interpreter, pytest.mark.long]),
        pytest.param({"backend": "triton", "unpad": True}, marks=[needs_interpreter, pytest.mark.integration]),
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def backend(request) -> dict:
    """Options of a plan for each back-end."""
    return request.param


def reordered(attention_plan: AttentionPlan, x: torch.Tensor) -> torch.Tensor:
    """`x` (B, heads, T, D) in the order of an unpadded plan."""
    if attention_plan.order is None:
        return x.transpose(1, 2).reshape(*attention_plan.non_text.shape[:2], *x.shape[1::2]).transpose(1, 2)
    return (
        attention_plan.order(x.transpose(1, 2).flatten(0, 1).flatten(1))
        .unflatten(1, x.shape[1::2])
        .transpose(0, 1)[None]
    )


def check_against_oracle(texts: list[str], groups: int, switches: dict, backend: dict) -> None:
    modality, ids = parse_modality(texts), parse_document_ids(texts)
    real = (modality != PAD)[:, :, None, None]
    inputs = tensors(modality, groups)
    attention_plan = AttentionPlan.build(modality, document_ids=ids, **switches, **backend)
    rows = [reordered(attention_plan, x) for x in inputs] if backend.get("unpad") else inputs
    out, weights = attend(None, *rows, **switches, scaling=WIDTH**-0.5, attention_plan=attention_plan)
    if attention_plan.order is not None:
        out = attention_plan.order.inverse()(out.flatten(0, 1).flatten(1))
    out = out.reshape(*modality.shape, HEADS, WIDTH)
    expected = oracle(*inputs, modality, ids, **switches)
    torch.testing.assert_close(out * real, expected * real, rtol=1e-10, atol=1e-10)
    if weights is not None:
        value = inputs[2].repeat_interleave(HEADS // groups, 1)
        torch.testing.assert_close((weights @ value).transpose(1, 2) * real, expected * real, rtol=1e-10, atol=1e-10)

    sample = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype) * real
    gradients = torch.autograd.grad((out * sample).sum(), inputs, allow_unused=True, materialize_grads=True)
    expected_gradients = torch.autograd.grad(
        (expected * sample).sum(), inputs, allow_unused=True, materialize_grads=True
    )
    for gradient, target in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, target, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("texts", CASES.values(), ids=CASES)
@pytest.mark.parametrize("switches", ALL_SWITCHES, ids=lambda switches: "-".join(switches.values()))
def test_equals_oracle_in_named_cases(texts, switches, backend):
    check_against_oracle(texts, HEADS, switches, backend)


random_cases = given(
    texts=st.lists(st.one_of(rows, packed_rows), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    groups=st.sampled_from([1, 2, 4]),
    name=st.sampled_from(sorted(SWITCHES)),
)


@settings(max_examples=60, deadline=None)
@random_cases
def test_equals_oracle_in_random_cases(texts, side, groups, name):
    check_against_oracle(pad(texts, side), groups, SWITCHES[name], {"backend": "sdpa"})


@needs_interpreter
@settings(max_examples=15, deadline=None)
@random_cases
def test_the_kernels_equal_the_oracle_in_random_cases(texts, side, groups, name):
    check_against_oracle(pad(texts, side), groups, SWITCHES[name], {"backend": "triton"})


def test_documents_of_different_length_are_computed_in_several_blocks():
    """Padding a long and many short documents to the same length would waste most of the work."""
    texts = pad(["|".join(["t" * 700 + "i" * 40 + "t" * 20, *["tiit" * 4] * 30]), "tiit" * 8], "right")
    modality, ids = parse_modality(texts), parse_document_ids(texts)
    attention_plan = AttentionPlan.build(modality, document_ids=ids, **SWITCHES["mmca"])
    blocks = attention_plan.backend.sum_index.blocks
    assert len(blocks) > 1
    assert sum(block.rows * block.texts for block in blocks) < 2 * int((modality == TEXT).sum())
    inputs = [x.detach() for x in tensors(modality, 1)]
    out, _ = attend(None, *inputs, **SWITCHES["mmca"], attention_plan=attention_plan)
    again = AttentionPlan.build(modality, document_ids=ids, **SWITCHES["mmca"], weights=True)
    expected, _ = attend(None, *inputs, **SWITCHES["mmca"], attention_plan=again)
    real = (modality != PAD)[:, :, None, None]
    torch.testing.assert_close(out * real, expected * real, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(rows, min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    groups=st.sampled_from([2, 4]),
    name=st.sampled_from(sorted(SWITCHES)),
    new=st.integers(1, 4),
)
def test_continuing_a_cache_equals_oracle_in_random_cases(texts, side, groups, name, new):
    check_continuing_against_oracle(pad([text + "tttt" for text in texts], side), groups, name, new)


@pytest.mark.parametrize("texts", [texts for name, texts in CASES.items() if "packed" not in name])
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("new", [1, 3])
def test_continuing_a_cache_equals_oracle(texts, name, new):
    check_continuing_against_oracle(texts, HEADS, name, new)


def check_continuing_against_oracle(texts: list[str], groups: int, name: str, new: int) -> None:
    modality = parse_modality(texts)
    query, key, value = tensors(modality, groups, new)
    attention_plan = AttentionPlan.build(modality, new, **SWITCHES[name])
    out, _ = attend(None, query, key, value, **SWITCHES[name], scaling=WIDTH**-0.5, attention_plan=attention_plan)
    real = (modality[:, -new:] != PAD)[:, :, None, None]
    expected = oracle(query, key, value, modality, None, **SWITCHES[name])
    torch.testing.assert_close(out * real, expected * real, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("texts", [texts for name, texts in CASES.items() if "packed" not in name])
def test_causal_equals_the_merge_of_two_branches_by_log_sum_exp(texts):
    """Both branches apart, each with its log-sum-exp, merged by sigmoid(lse_image - lse_text): one softmax over all."""
    modality = parse_modality(texts)
    query, key, value = tensors(modality, HEADS)
    out, _ = attend(
        None,
        query,
        key,
        value,
        **SWITCHES["causal"],
        attention_plan=AttentionPlan.build(modality, **SWITCHES["causal"]),
    )

    scores = query @ key.transpose(2, 3) * WIDTH**-0.5
    before = torch.ones(modality.shape[1], modality.shape[1], dtype=torch.bool).tril()
    branches = []
    for kind in (TEXT, IMAGE):
        allowed = (modality == kind)[:, None, None] & before
        branch = scores.masked_fill(~allowed, -1e30)
        branches.append((branch.logsumexp(-1, keepdim=True), branch.softmax(-1) @ value))
    (lse_text, text), (lse_image, image) = branches
    share = (lse_image - lse_text).sigmoid()
    merged = (text + share * (image - text)).transpose(1, 2)
    real = (modality != PAD)[:, :, None, None]
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


def token_ids(modality: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randint(0, 64, modality.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("texts", [["tiitiit", "ttiiiit"], ["...tiit", "tititit"]], ids=["full", "left"])
def test_cache_equals_full_forward(name, texts):
    """A prefill, a step of several tokens and single steps give the logits of one forward over everything."""
    modality = parse_modality([text + "tttitt" for text in texts])
    ids, positions = token_ids(modality, 3), compute_position_ids(modality)
    model = decoder(name).eval()
    with torch.no_grad():
        full = model(
            input_ids=ids, position_ids=positions, attention_plan=AttentionPlan.build(modality, **SWITCHES[name])
        ).logits
        cache, parts = DynamicCache(config=model.config), []
        for start, stop in ((0, 7), (7, 11), (11, 12), (12, 13)):
            attention_plan = AttentionPlan.build(modality[:, :stop], stop - start, **SWITCHES[name])
            step = {"input_ids": ids[:, start:stop], "position_ids": positions[:, start:stop]}
            parts.append(model(**step, past_key_values=cache, use_cache=True, attention_plan=attention_plan).logits)
    real = modality != PAD
    torch.testing.assert_close(torch.cat(parts, 1)[real], full[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("case", ["different segments", "packed"])
def test_gradient_checkpointing_changes_nothing(name, case):
    modality, ids = parse_modality(CASES[case]), parse_document_ids(CASES[case])
    tokens, gradients = token_ids(modality, 4), []
    for checkpointing in (False, True):
        model = decoder(name).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        attention_plan = AttentionPlan.build(modality, document_ids=ids, **SWITCHES[name])
        logits = model(input_ids=tokens, use_cache=False, attention_plan=attention_plan).logits
        F.cross_entropy(logits[modality == TEXT], tokens[modality == TEXT]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert attention_plan.calls == 2 * (1 + checkpointing)
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_a_plan_serves_several_devices():
    modality = parse_modality(CASES["packed"])
    attention_plan = AttentionPlan.build(modality, document_ids=parse_document_ids(CASES["packed"]), **SWITCHES["mmca"])
    away = attention_plan.to("meta")
    assert away.backend.sum_index.slot.device.type == "meta"
    assert attention_plan.backend.sum_index.slot.device.type == "cpu"
    assert away is attention_plan.to("meta") and attention_plan.to("cpu") is attention_plan
    inputs = [x.to("meta") for x in tensors(modality, 2)]
    assert attend(None, *inputs, **SWITCHES["mmca"], attention_plan=away)[0].shape == (*modality.shape, HEADS, WIDTH)
    assert attention_plan.calls == away.calls == 1


def test_unsupported_inputs_are_refused(monkeypatch):
    modality = parse_modality(["tiit"])
    inputs = tensors(modality, HEADS)
    attention_plan = AttentionPlan.build(modality, **SWITCHES["mmca"])
    with pytest.raises(ValueError, match="sliding_window"):
        attend(None, *inputs, **SWITCHES["mmca"], attention_plan=attention_plan, sliding_window=16)
    with pytest.raises(ValueError, match="its own attention mask"):
        attend(None, *inputs, torch.ones(1, 1, 4, 4), **SWITCHES["mmca"], attention_plan=attention_plan)
    with pytest.raises(ValueError, match="where text and images lie"):
        attend(None, *inputs, **SWITCHES["mmca"])
    with pytest.raises(ValueError, match="a plan for 5 tokens"):
        attend(
            None,
            *inputs,
            **SWITCHES["mmca"],
            attention_plan=AttentionPlan.build(parse_modality(["tiitt"]), **SWITCHES["mmca"]),
        )
    monkeypatch.setattr(attention_plan_module, "INTERPRETED", False)
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"triton back-end cannot compute .* on cpu"):
        choose_backend("triton", cpu, torch.bfloat16, 64)
    with pytest.raises(ValueError, match="unknown attention back-end 'flsh': choose one of auto, sdpa, triton"):
        choose_backend("flsh", cpu, torch.bfloat16, 64)
    assert choose_backend("auto", cpu, torch.bfloat16, 64) == "sdpa"
    with pytest.raises(ValueError, match="cannot continue a cache"):
        AttentionPlan.build(modality, 1, document_ids=torch.ones_like(modality), **SWITCHES["mmca"])


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ([[1, 1, 2, 1]], "must be contiguous"),
        ([[1, 1, 2, 0]], "0 at padding and above 0 elsewhere"),
        ([[1, 1, 2]], "shape of the batch"),
    ],
)
def test_document_ids_that_do_not_match_are_refused(ids, error):
    with pytest.raises(ValueError, match=error):
        AttentionPlan.build(parse_modality(["tiit"]), document_ids=torch.tensor(ids), **SWITCHES["mmca"])


@pytest.mark.parametrize("name", SWITCHES)
def test_images_are_held_once_however_often_they_are_read(name):
    """Eight images, read by eight segments of text: what the backward pass keeps grows with the tokens alone."""
    heads, groups, width = 4, 2, 16

    def kept(images: int) -> int:
        # Rows that differ, so that the calls need masks.
        modality = parse_modality(pad([("i" * 32 + "t" * 4) * images, ("i" * 30 + "t" * 4) * images], "right"))
        shapes = [(2, n, modality.shape[1], width) for n in (heads, groups, groups)]
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        attention_plan = AttentionPlan.build(modality, **SWITCHES[name])
        sizes = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            attend(None, *inputs, **SWITCHES[name], attention_plan=attention_plan)
        return sum(sizes.values()) // modality.numel()

    # Bytes for each token: copies for each segment would make it proportional to the number of images.
    assert kept(16) <= 1.1 * kept(8)


@needs_interpreter
@pytest.mark.parametrize("name", SWITCHES)
def test_a_layer_is_three_launches_and_nothing_else_is_computed(name, monkeypatch):
    """Apart from the kernels, memory is allocated and looked at in other shapes: nothing that would run on a GPU."""
    launched, computed = [], set()
    true_launch = fused_attention._launch

    def launch(number, *args):
        launched.append(number)
        with _disable_current_modes():
            true_launch(number, *args)

    class Computed(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.is_view:
                computed.add(str(func.overloadpacket))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(fused_attention, "_launch", launch)
    modality = parse_modality(["ttiitti|tit|iit"])
    ids = parse_document_ids(["ttiitti|tit|iit"])
    attention_plan = AttentionPlan.build(modality, document_ids=ids, **SWITCHES[name], backend="triton", unpad=True)
    inputs = tensors(modality, 2)
    gradient = torch.randn(1, modality.shape[1], HEADS, WIDTH, dtype=torch.float64)
    with Computed():
        out, _ = attend(None, *inputs, **SWITCHES[name], attention_plan=attention_plan)
        torch.autograd.grad(out, inputs, gradient)
    assert launched == [0, 1, 2]
    assert computed <= {"aten.empty", "aten.empty_like", "aten.detach"}, computed
