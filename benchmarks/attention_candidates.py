"""What `benchmarks.attention` compares: each candidate is a forward and a backward of one layer's attention.

    dense            two softmaxes over T x T scores with masks, as in the paper's formula; the masks are not timed
    causal           scaled_dot_product_attention(is_causal=True) with the kernel that PyTorch chooses
    cudnn            the same, computed by cuDNN (GPU)
    flash, det.      the same, computed by flash attention with the deterministic backward pass of training (GPU)
    mmca, dattn      `attend` as the model calls it, with the back-end that the model would choose
    mmca, det.       the same with deterministic algorithms only, as in training (GPU); and 'dattn, det.'
    mmca, text by cudnn
                     cuDNN's causal attention over the rows of text alone, and our kernel with the text branch left
                     empty; the addition of both is not timed (GPU)

Queries, keys and values lie in memory as a decoder makes them, (1, T, heads, width), and so does the gradient of the
output.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measuring import determinism
from model.attention import attend
from model.attention_plan import SWITCHES, AttentionPlan, choose_backend
from model.documents import IMAGE, TEXT
from model.fused_attention import flat_attention
from model.masks import Masks, attend_with_weights

IMAGE_TOKENS = 256
ON_CPU = ("dense", "causal", "mmca", "dattn")
ON_GPU = (
    *("dense", "causal", "cudnn", "flash, det.", "mmca", "mmca, det.", "dattn", "dattn, det."),
    "mmca, text by cudnn",
)
_KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclass
class Candidate:
    """A forward of attention with the tensors that it takes; the backward is that of autograd."""

    function: Callable[..., tuple[Tensor, ...]]
    tensors: list[Tensor]
    deterministic: bool = False
    kernel: SDPBackend | None = None

    def __post_init__(self) -> None:
        with self.settings():
            outputs = self.function(*self.tensors)
        self._gradients = [torch.randn_like(output) for output in outputs]

    @contextmanager
    def settings(self) -> Iterator[None]:
        """What holds while the candidate runs: deterministic algorithms or any, and one kernel of SDPA or any."""
        with determinism(self.deterministic), nullcontext() if self.kernel is None else sdpa_kernel(self.kernel):
            yield

    def __call__(self) -> list[Tensor]:
        """Run forward and backward; returns the outputs and the gradients of all tensors."""
        outputs = self.function(*self.tensors)
        return [*outputs, *torch.autograd.grad(outputs, self.tensors, self._gradients)]


def conversation(images: int, text: int) -> Tensor:
    """The modality (1, T) of a conversation: some text, an image, some text, the next image, ..."""
    share = text // (images + 1)
    modality = ([TEXT] * share + [IMAGE] * IMAGE_TOKENS) * images
    return torch.tensor([modality + [TEXT] * (text - share * images)])


def candidate(name: str, modality: Tensor, args: argparse.Namespace) -> Candidate:
    """The candidate of this name for one conversation.

    `args` has `heads`, `groups` (heads of keys), `width`, `dtype`, `device` and `deterministic`.

    Raises RuntimeError or ValueError if it cannot run on this device.
    """
    base, _, variant = name.partition(", ")
    deterministic = args.deterministic or variant == "det."
    if variant == "text by cudnn":
        return _split(modality, args)
    tensors = _inputs(modality.shape[1], args)
    if base in ("mmca", "dattn"):
        # The tokens are in the order in which the model passes them to its decoder.
        backend = choose_backend("auto", args.device, args.dtype, args.width)
        plan = AttentionPlan.build(modality.to(args.device), **SWITCHES[base], backend=backend, unpad=True)
        return Candidate(partial(_ours, base, plan), tensors, deterministic)
    if base == "dense":
        return Candidate(_dense(modality, args), tensors, deterministic)
    return Candidate(_causal, tensors, deterministic, _KERNELS.get(base))


def _inputs(rows: int, args: argparse.Namespace) -> list[Tensor]:
    """Random query, key and value (1, heads, rows, width) that require gradients."""
    torch.manual_seed(0)
    shapes = [(1, rows, heads, args.width) for heads in (args.heads, args.groups, args.groups)]
    tensors = [torch.randn(shape, device=args.device, dtype=args.dtype).transpose(1, 2) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors]


def _ours(name: str, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    return (attend(None, query, key, value, **SWITCHES[name], attention_plan=plan)[0],)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    gqa = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=gqa)
    return (out.transpose(1, 2),)


def _dense(modality: Tensor, args: argparse.Namespace) -> Callable[..., tuple[Tensor, ...]]:
    masks = Masks.build(modality, modality.shape[1])
    masks = Masks(*(getattr(masks, field).to(args.device) for field in ("everything", "text", "image", "no_image")))
    non_text = (modality != TEXT)[:, :, None, None].to(args.device)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        options: Any = {"dropout": 0.0, "scaling": None}
        return (attend_with_weights(query, key, value, masks, non_text, **SWITCHES["mmca"], **options)[0],)

    return dense


def _split(modality: Tensor, args: argparse.Namespace) -> Candidate:
    """The text by cuDNN, the images by our kernel: two calls on tensors of their own, so that nothing is copied."""
    spans, reads = image_spans(modality[0])
    texts, rows = spans.shape[1], reads.shape[1]
    spans, reads = spans.to(args.device), reads.to(args.device)
    flat = [tensor[0].transpose(0, 1).detach().requires_grad_() for tensor in _inputs(rows, args)]

    def split(*tensors: Tensor) -> tuple[Tensor, ...]:
        scaling = args.width**-0.5
        return *_causal(*tensors[:3]), flat_attention(*tensors[3:], spans, reads, scaling=scaling, joint=False)

    return Candidate(split, [*_inputs(texts, args), *flat], args.deterministic, SDPBackend.CUDNN_ATTENTION)


def image_spans(modality: Tensor) -> tuple[Tensor, Tensor]:
    """The spans (4, texts) and reads (2, T), int32, of one document (T,) whose text branch is empty.

    Rows are all text, then all images. A text row reads texts [spans[0], spans[1]) and images [spans[2], spans[3]); a
    row is read by texts [reads[0], reads[1]).
    """
    is_text = modality == TEXT
    texts = int(is_text.sum())
    itself, seen = torch.arange(texts), (~is_text).cumsum(0)[is_text]
    spans = torch.stack([itself, itself, torch.zeros_like(seen), seen])
    first_reader = is_text.cumsum(0)[~is_text]
    reads = torch.cat(
        [torch.stack([itself, itself]), torch.stack([first_reader, torch.full_like(first_reader, texts)])], dim=1
    )
    return spans.to(torch.int32).contiguous(), reads.to(torch.int32).contiguous()
