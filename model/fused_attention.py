"""Attention over whole batches in three launches a layer: one forward, two backward, on a GPU in half precision.

The rows of a batch are brought into the flat order of fused_kernels.py, once for all layers where the model can
(`AttentionPlan.order`), since nothing else in a decoder depends on it. Nothing is padded, repeated or masked in
memory: a row of text reads the spans of text and images that precede it, a row of an image is a copy of its value.
With image rows that attend causally there is nothing but text in this sense: each row reads what precedes it.

    sum          two softmaxes, whose results are added
    text_joint   one softmax over both spans
    joint        the same, with every row as text

`FusedAttention.is_supported` decides where this is used; everywhere else sdpa_segments.py does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .documents import TEXT, Documents, merge_heads
from .row_permutation import RowPermutation
from .sdpa import Sdpa

try:
    import triton
    import triton.language as tl

    from .fused_kernels import forward_kernel, key_gradient_kernel, query_gradient_kernel

    # Each with the name of the block that its programs are counted by.
    _KERNELS = [(forward_kernel, "BM"), (query_gradient_kernel, "BM"), (key_gradient_kernel, "BN")]
    # Triton was asked (TRITON_INTERPRET) to run kernels on the CPU, for tests.
    INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
except ImportError:
    triton, INTERPRETED = None, False

_WIDEST_HEAD = 256
_LOG2_E = 1.4426950408889634
_FORWARD, _QUERY_GRADIENT, _KEY_GRADIENT = range(3)


@dataclass(frozen=True)
class KernelConfig:
    """How a kernel is launched: blocks of `rows` queries and `keys` keys, warps of a program, stages of its loops."""

    rows: int
    keys: int
    warps: int
    stages: int

    def options(self) -> dict[str, int]:
        """The arguments of a launch."""
        return {"BM": self.rows, "BN": self.keys, "num_warps": self.warps, "num_stages": self.stages}


# The launches that are tried, best first, by the instruction of the tensor cores and the greatest width of a head:
# (rows, keys, warps, stages) of the forward kernel, the gradient of queries and the gradient of keys. None spills
# registers, and each fits into the shared memory of a block: 227 KiB with wgmma and tcgen05, 99 KiB elsewhere.
_CANDIDATES = {
    "mma.sync": {
        64: (
            [(128, 64, 8, 3), (64, 64, 4, 3), (128, 64, 4, 3)],
            [(128, 32, 8, 2), (128, 32, 8, 3), (64, 32, 4, 2)],
            [(32, 128, 8, 2), (16, 128, 8, 2), (32, 64, 4, 2)],
        ),
        128: (
            [(128, 32, 8, 3), (128, 32, 8, 2)],
            [(64, 64, 8, 2), (64, 32, 8, 2)],
            [(64, 64, 8, 2), (32, 64, 8, 3), (32, 64, 8, 2)],
        ),
        256: (
            [(64, 32, 8, 2), (64, 32, 8, 1)],
            [(64, 32, 8, 1), (32, 32, 8, 2)],
            [(16, 64, 8, 2), (32, 32, 8, 2)],
        ),
    },
    "wgmma": {
        64: (
            [(128, 64, 4, 3), (128, 128, 8, 3), (128, 64, 8, 3)],
            [(128, 64, 8, 3), (64, 64, 4, 3)],
            [(64, 128, 8, 2), (64, 64, 4, 2), (32, 128, 8, 3)],
        ),
        128: (
            [(128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 4)],
            [(128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3)],
            [(32, 128, 8, 2), (32, 128, 8, 3), (16, 128, 8, 2), (16, 64, 4, 3)],
        ),
        256: (
            [(64, 64, 8, 2), (64, 32, 8, 3)],
            [(64, 32, 8, 2), (64, 16, 8, 2)],
            [(32, 64, 8, 2), (32, 64, 8, 3), (16, 64, 8, 2)],
        ),
    },
    "tcgen05": {
        64: (
            [(128, 64, 8, 3), (128, 128, 8, 3), (64, 64, 4, 3)],
            [(64, 64, 4, 3), (128, 64, 4, 2)],
            [(64, 128, 8, 2), (32, 128, 8, 3), (32, 128, 4, 2)],
        ),
        128: (
            [(128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 4)],
            [(128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3)],
            [(64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 8, 2)],
        ),
        256: (
            [(64, 64, 8, 2), (64, 32, 8, 3)],
            [(128, 32, 8, 2), (64, 32, 8, 2)],
            [(32, 64, 8, 2), (32, 64, 8, 1)],
        ),
    },
}


def candidates(capability: tuple[int, int], width: int) -> list[list[KernelConfig]]:
    """The launches to choose from on a GPU of this compute capability for heads of `width`, at most 256.

    A list for each kernel, the usual best first.
    """
    tables = _CANDIDATES[{9: "wgmma", 10: "tcgen05"}.get(capability[0], "mma.sync")]
    widest = min(limit for limit in tables if limit >= width)
    return [[KernelConfig(*launch) for launch in launches] for launches in tables[widest]]


def fixed_config(capability: tuple[int, int], width: int) -> list[KernelConfig]:
    """The launch of each kernel where results must repeat; see `candidates`."""
    return [configs[0] for configs in candidates(capability, width)]


def shape_class(rows: int, texts: int) -> int:
    """A number that batches share for which the same launches are best: their length, and the share of text in it."""
    return 3 * min(max((rows - 1).bit_length(), 10), 16) + min(3 * texts // rows, 2)


@lru_cache
def _tuned(number: int, capability: tuple[int, int], width: int) -> Any:
    """Kernel `number` with the choice of its launch: the fastest at the first batch of a shape class."""
    configs = [
        triton.Config({"BM": c.rows, "BN": c.keys}, num_warps=c.warps, num_stages=c.stages)
        for c in candidates(capability, width)[number]
    ]
    return triton.autotune(configs, key=["shape", "R", "D", "JOINT"])(_KERNELS[number][0])


@dataclass(frozen=True)
class FlatSpans:
    """What each row of a batch in flat order reads, and what reads it: the tables of fused_kernels.py.

    spans (4, Mt) int32, reads (2, M) int32.
    """

    spans: Tensor
    reads: Tensor

    @classmethod
    def of_text_and_images(cls, documents: Documents) -> FlatSpans:
        """Text reads the text of its document up to itself and the images of its document before it."""
        is_text = documents.modality == TEXT
        first_text = documents.text_lengths.cumsum(0) - documents.text_lengths
        first_image = documents.image_lengths.cumsum(0) - documents.image_lengths
        of_text, of_image = documents.numbers[is_text], documents.numbers[~is_text]
        last_text = first_text + documents.text_lengths
        rows = torch.arange(len(of_text))
        images_before = (~is_text).cumsum(0)[is_text]
        text_before = is_text.cumsum(0)[~is_text]
        spans = torch.stack([first_text[of_text], rows + 1, first_image[of_text], images_before])
        reads = torch.stack([torch.cat([rows, text_before]), last_text[torch.cat([of_text, of_image])]])
        return cls(spans.to(torch.int32), reads.to(torch.int32))

    @classmethod
    def of_rows(cls, documents: Documents) -> FlatSpans:
        """Every row, text or image, reads the rows of its document up to itself."""
        rows = torch.arange(len(documents.numbers))
        first = (documents.lengths.cumsum(0) - documents.lengths)[documents.numbers]
        nothing = torch.zeros_like(rows)
        spans = torch.stack([first, rows + 1, nothing, nothing])
        reads = torch.stack([rows, first + documents.lengths[documents.numbers]])
        return cls(spans.to(torch.int32), reads.to(torch.int32))


@dataclass
class FusedAttention:
    """The attention of a batch. `non_text` (B, T, 1, 1) marks queries that are not text.

    `order` brings the rows of the batch (B*T) into flat order; None: they are in it. `is_joint`: one softmax.
    """

    non_text: Tensor
    flat: FlatSpans
    order: RowPermutation | None
    is_joint: bool

    @classmethod
    def build(cls, documents: Documents, non_text: Tensor, *, every_row: bool, is_joint: bool) -> FusedAttention:
        """Plan a batch. `every_row`: images attend too, as if they were text, for which `is_joint` must be set."""
        total = non_text.shape[:2].numel()
        if every_row:
            order, flat = documents.tokens, FlatSpans.of_rows(documents)
        else:
            order, flat = documents.text_first(), FlatSpans.of_text_and_images(documents)
        return cls(non_text, flat, RowPermutation.from_source(order, total), is_joint)

    @staticmethod
    def is_supported(device: torch.device, dtype: torch.dtype, width: int, dropout: float) -> bool:
        """Whether the kernels can compute heads of this width on this device in this precision, without dropout."""
        return (
            triton is not None
            and device.type == "cuda"
            and torch.version.hip is None
            and dtype in (torch.float16, torch.bfloat16)
            and 16 <= width <= _WIDEST_HEAD
            and width % 8 == 0
            and dropout == 0
            and torch.cuda.get_device_capability(device) >= (8, 0)
        )

    def joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """One softmax over all keys of the document up to the query. Returns (B, T, H, D)."""
        assert self.is_joint, "the plan was built for two softmaxes"
        return self._run(sdpa, query, key, value)

    def text_joint(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The same at text tokens alone; at image tokens their own value. Returns (B, T, H, D)."""
        return self.joint(sdpa, query, key, value, layer)

    def sum(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """The text branch plus the image branch, and at image tokens their own value. Returns (B, T, H, D)."""
        assert not self.is_joint, "the plan was built for one softmax"
        return self._run(sdpa, query, key, value)

    def _run(self, sdpa: Sdpa, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, _, length, width = query.shape
        scaling = width**-0.5 if sdpa.scaling is None else sdpa.scaling
        if self.order is None and batch == 1:
            rows = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]
        else:
            tables = [merge_heads(x) for x in (query, key, value)]
            if self.order is not None:
                tables = [self.order(table) for table in tables]
            rows = [table.unflatten(1, (-1, width)) for table in tables]
        out = flat_attention(*rows, self.flat.spans, self.flat.reads, scaling=scaling, joint=self.is_joint)
        if self.order is not None:
            out = self.order.inverse()(out.flatten(1))
        return out.view(batch, length, -1, width)


@torch.compiler.disable  # the launches are opaque to it
def flat_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Tensor, reads: Tensor, *, scaling: float, joint: bool
) -> Tensor:
    """Attention of rows in flat order: `query` (M, H, D), `key` and `value` (M, G, D), H a multiple of G.

    `spans` (4, Mt) and `reads` (2, M) are int32, see fused_kernels.py; `joint`: one softmax over both spans rather
    than a sum of two. Returns (M, H, D). The same inputs give the same bits where `torch.use_deterministic_algorithms`
    is on; elsewhere the launches are tuned, which may differ from process to process.

    Raises ValueError for a `scaling` that is not positive: the forward kernel looks for the greatest score before it.
    """
    if scaling <= 0:
        raise ValueError(f"the scaling of attention scores must be positive, not {scaling}")
    out: Tensor = _FlatAttention.apply(query, key, value, spans, reads, scaling, joint)
    return out


class _FlatAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: Tensor,
        reads: Tensor,
        scaling: float,
        joint: bool,
    ) -> Tensor:
        query, key, value = (_with_dense_heads(x) for x in (query, key, value))
        heads, texts = query.shape[1], spans.shape[1]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        out_text = out if joint else torch.empty_like(out[:texts])
        precision = torch.float64 if query.dtype == torch.float64 else torch.float32
        lse = torch.empty(1 if joint else 2, heads, texts, dtype=precision, device=query.device)
        _launch(
            _FORWARD,
            [query, key, value, out, out_text, lse, spans],
            [query, key, value],
            value,
            spans,
            [scaling * _LOG2_E],
            joint,
        )
        ctx.save_for_backward(query, key, value, out, out_text, lse, spans, reads)
        ctx.scaling, ctx.joint = scaling, joint
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, out_text, lse, spans, reads = ctx.saved_tensors
        gradient = _with_dense_heads(gradient)
        dq = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        dk, dv = (torch.empty(key.shape, dtype=key.dtype, device=key.device) for _ in range(2))
        delta = torch.empty_like(lse)
        strided, scales = [query, key, value, gradient], [ctx.scaling * _LOG2_E, ctx.scaling]
        tensors = [query, key, value, out, out_text, gradient, dq, lse, delta, spans]
        _launch(_QUERY_GRADIENT, tensors, strided, value, spans, scales, ctx.joint)
        # After the other, which computes `delta`.
        tensors = [query, key, value, gradient, dk, dv, lse, delta, reads]
        _launch(_KEY_GRADIENT, tensors, strided, value, spans, scales, ctx.joint)
        return dq, dk, dv, None, None, None, None


def _with_dense_heads(x: Tensor) -> Tensor:
    """`x` (M, heads, D) as the kernels take it: any distance between rows and between heads, none within a head."""
    return x if x.stride(2) == 1 else x.contiguous()


def _launch(
    number: int,
    tensors: Sequence[Tensor],
    strided: Sequence[Tensor],
    value: Tensor,
    spans: Tensor,
    scales: Sequence[float],
    joint: bool,
) -> None:
    """Launch kernel `number` on `tensors`; the kernels take rows and heads of the `strided` ones at any distance."""
    kernel, block = _KERNELS[number]
    query = strided[0]
    (rows, heads, width), groups, texts = query.shape, value.shape[1], spans.shape[1]
    programs = groups if number == _KEY_GRADIENT else heads
    constants = {
        "JOINT": joint,
        "D": width,
        "WIDTH": max(16, triton.next_power_of_2(width)),
        "SUM": tl.float64 if query.dtype == torch.float64 else tl.float32,
        "UPCAST": INTERPRETED and query.dtype == torch.bfloat16,
        "enable_fp_fusion": True,  # the default is not the same in all releases
    }
    capability = (0, 0) if INTERPRETED else torch.cuda.get_device_capability(query.device)
    if INTERPRETED or torch.are_deterministic_algorithms_enabled():
        constants |= fixed_config(capability, width)[number].options()
    else:
        kernel = _tuned(number, capability, width)
    # A dimension of size 1 may have any stride, and Triton takes one that is 1 for a constant.
    strides = [x.stride(dim) if x.shape[dim] > 1 else width for x in strided for dim in (0, 1)]
    sizes = [texts, rows - texts, heads, heads // groups]

    def grid(options: dict[str, int]) -> tuple[int, int]:
        size = options[block]
        return triton.cdiv(texts, size) + triton.cdiv(rows - texts, size), programs

    with torch.cuda.device_of(query):
        kernel[grid](*tensors, *strides, *sizes, *scales, shape_class(rows, texts), **constants)
