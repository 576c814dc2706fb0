"""The fused kernels equal the formula, forward and backward, in Triton's interpreter or on a GPU.

Drawn batches reach them through `attend` in test_attention.py; here are layouts of one row of packed documents, with
small blocks, so that few tokens make many of them.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import fused_attention
from model.documents import IMAGE, TEXT, Documents
from model.fused_attention import INTERPRETED, FlatSpans, KernelConfig, flat_attention
from tests.model.attention_cases import packed_rows, parse_document_ids, parse_modality

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(
    not (INTERPRETED or (torch.cuda.is_available() and fused_attention.triton)),
    reason="needs triton, and its interpreter (TRITON_INTERPRET=1) or a GPU",
)
# The largest relative error: exact up to rounding, and a few times the rounding of the dtype. A GPU computes in halves.
PRECISIONS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
HALVES = [torch.float16, torch.bfloat16]
FINEST = torch.float64 if INTERPRETED else torch.float16
MODES = ("mmca", "dattn", "causal")
LAYOUTS = {
    "text": "t" * 37,
    "image first, then many blocks": "i" * 40 + "t" * 50,
    "packed": "tttiiiittttiit|tt|iiiitttttttttt|t|ii|ttiiiiiiiittttttttttttttt",
    "adjacent images": "tii" + "i" * 20 + "iitt" + "t" * 18 + "iiii",
    "documents of one token": "t|t|i|t|ti|it|t|i|i|t",
    "images of whole blocks": "t" * 5 + ("i" * 32 + "t" * 16) * 2,
    "images only": "iii|iiiii",
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 and 32 rows."""
    use_blocks(monkeypatch, [(16, 16), (32, 16), (16, 32)])


def use_blocks(patch: pytest.MonkeyPatch, blocks: list[tuple[int, int]]) -> None:
    """Launch the three kernels over blocks of these rows and keys; `deterministic` asks for the fixed launches."""
    configs = [KernelConfig(rows, keys, 4, 2) for rows, keys in blocks]
    patch.setattr(fused_attention, "fixed_config", lambda capability, width: configs)
    patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)


def plan(text: str, mode: str) -> tuple[FlatSpans, torch.Tensor, torch.Tensor]:
    """The spans of a row of packed documents, and of its tokens in flat order the modality and the mask (M, M)."""
    modality, ids = parse_modality([text]), parse_document_ids([text])
    documents = Documents.from_modality(modality, ids)
    if mode == "causal":
        order, flat = documents.tokens, FlatSpans.of_rows(documents)
    else:
        order, flat = documents.text_first(), FlatSpans.of_text_and_images(documents)
    numbers = documents.numbers[order]
    before = (order[:, None] >= order[None]) & (numbers[:, None] == numbers[None])
    return FlatSpans(flat.spans.to(DEVICE), flat.reads.to(DEVICE)), modality[0, order], before


def formula(query, key, value, modality, before, scaling: float, mode: str) -> torch.Tensor:
    """The attention (M, H, D) with a mask over all keys, in the dtype of the inputs."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("mhd,nhd->hmn", query, key) * scaling

    def softmax(allowed: torch.Tensor) -> torch.Tensor:
        most = scores.detach().masked_fill(~allowed, -torch.inf).amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        weights = (scores - most).masked_fill(~allowed, -torch.inf).exp()
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)

    text, image = before & (modality == TEXT), before & (modality == IMAGE)
    weights = softmax(text) + softmax(image) if mode == "mmca" else softmax(before)
    out = torch.einsum("hmn,nhd->mhd", weights, value)
    return out if mode == "causal" else torch.where((modality == TEXT)[:, None, None], out, value)


def draw(rows: int, heads: tuple[int, int], width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key, value, and the gradient of the output, the same for the same arguments."""
    generator = torch.Generator().manual_seed(rows + width)
    sizes = (heads[0], heads[1], heads[1], heads[0])
    return [torch.randn(rows, size, width, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def run(text: str, mode: str, inputs: list[torch.Tensor], gradient: torch.Tensor) -> list[torch.Tensor]:
    """The output of the kernels, and the gradients of query, key and value."""
    flat, _, _ = plan(text, mode)
    inputs = [x.to(DEVICE).detach().requires_grad_() for x in inputs]
    out = flat_attention(*inputs, flat.spans, flat.reads, scaling=0.3, joint=mode != "mmca")
    return [x.detach().cpu() for x in (out, *torch.autograd.grad(out, inputs, gradient.to(DEVICE)))]


def check(text: str, mode: str, inputs: list[torch.Tensor], gradient: torch.Tensor) -> list[torch.Tensor]:
    """Run the kernels and compare with the formula in float64."""
    actual = run(text, mode, inputs, gradient)
    exact = [x.double().requires_grad_() for x in inputs]
    _, modality, before = plan(text, mode)
    out = formula(*exact, modality, before, 0.3, mode)
    gradients = torch.autograd.grad(out, exact, gradient.double(), allow_unused=True, materialize_grads=True)
    for name, ours, theirs in zip(("output", "query", "key", "value"), actual, (out, *gradients), strict=True):
        # Some are 0 but for rounding: a softmax over one key does not depend on the query.
        error = float((ours.double() - theirs.detach()).norm() / theirs.detach().norm().clamp(min=1))
        assert error <= PRECISIONS[ours.dtype], f"{name}: relative error {error:.1e}"
    return actual


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("small_blocks")
def test_equals_the_formula(text, mode):
    *inputs, gradient = draw(len(text.replace("|", "")), (2, 1), 16, FINEST)
    check(text, mode, inputs, gradient)


@settings(max_examples=20, deadline=None)
@given(
    texts=st.lists(packed_rows, min_size=1, max_size=4),
    mode=st.sampled_from(MODES),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)]),
    blocks=st.lists(st.sampled_from([(16, 16), (16, 32), (32, 16), (32, 64)]), min_size=3, max_size=3),
)
def test_equals_the_formula_in_random_cases(texts, mode, heads, blocks):
    text = "|".join(texts)
    *inputs, gradient = draw(len(text.replace("|", "")), heads, 16, FINEST)
    with pytest.MonkeyPatch.context() as patch:
        use_blocks(patch, blocks)
        check(text, mode, inputs, gradient)


@pytest.mark.parametrize("width", [24, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)], ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_every_width_and_grouping(width, heads):
    text = "ttiiit|iitttttttttttttt"
    *inputs, gradient = draw(len(text) - 1, heads, width, FINEST)
    check(text, "mmca", inputs, gradient)


@pytest.mark.parametrize("width", [80, 128])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [*([torch.float32] if INTERPRETED else []), *HALVES], ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_every_precision_is_as_close_as_its_rounding(dtype, mode, width):
    text = "ttiiit|iitttttttttttttt"
    *inputs, gradient = draw(len(text) - 1, (2, 1), width, dtype)
    check(text, mode, inputs, gradient)


@pytest.mark.parametrize("mode", MODES)
def test_the_launches_of_a_gpu_compute_the_same(mode):
    """The fixed launches, with blocks larger than the batch."""
    *inputs, gradient = draw(len(LAYOUTS["packed"].replace("|", "")), (2, 1), 64, FINEST)
    check(LAYOUTS["packed"], mode, inputs, gradient)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("small_blocks")
def test_repeats_bit_by_bit(mode):
    text = "i" * 18 + "t" * 20 + "|ttiitt"
    *inputs, gradient = draw(len(text) - 1, (2, 1), 64, torch.bfloat16)
    first, second = (run(text, mode, inputs, gradient) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def in_guarded_buffer(x: torch.Tensor) -> torch.Tensor:
    """The same as a part of a larger buffer, whose rows, heads and columns around it are NaN."""
    rows, heads, width = x.shape
    buffer = torch.full((rows + 70, heads + 2, width + 16), float("nan"), dtype=x.dtype, device=DEVICE)
    view = buffer[35 : 35 + rows, 1 : 1 + heads, 8 : 8 + width]
    view.copy_(x)
    return view


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.usefixtures("small_blocks")
def test_reads_nothing_around_its_inputs_and_no_query_of_an_image(mode, width):
    text = "ttiiiit|t|iittttttttttttttttttti"
    *inputs, gradient = draw(len(text) - 2, (2, 1), width, FINEST)
    expected = check(text, mode, inputs, gradient)
    flat, modality, _ = plan(text, mode)
    query, key, value, gradient = (in_guarded_buffer(x) for x in (*inputs, gradient))
    if mode != "causal":
        query[modality.to(DEVICE) == IMAGE] = float("nan")
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    out = flat_attention(*inputs, flat.spans, flat.reads, scaling=0.3, joint=mode != "mmca")
    actual = [out, *torch.autograd.grad(out, inputs, gradient)]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.usefixtures("small_blocks")
def test_takes_rows_and_heads_at_any_distance():
    """Heads before rows, parts of a fused projection, a broadcast gradient: the same bits."""
    text = "ttiiiitttttttttiitttttt"
    query, key, value, _ = draw(len(text), (4, 2), 16, FINEST)
    gradient = torch.ones((), dtype=FINEST).expand(query.shape)
    expected = check(text, "mmca", [query, key, value], gradient)
    heads_first = query.transpose(0, 1).contiguous().transpose(0, 1)
    fused = torch.cat([key, value], 1)
    columns_first = value.transpose(1, 2).contiguous().transpose(1, 2)
    for inputs in ([heads_first, fused[:, :2], fused[:, 2:]], [query, key, columns_first]):
        actual = run(text, "mmca", inputs, gradient)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
