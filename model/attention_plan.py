"""The attention plan: where the text, images, documents and padding of a batch lie, and how its attention is computed.

A plan is built once per forward and read by every layer. It holds a *back-end*, which computes the attention:

    fused_attention.py   whole sequences, kernels of our own: CUDA, half precision
    sdpa_segments.py     whole sequences, SDPA over compacted tokens: everywhere
    masks.py             a few queries that continue a cache

All back-ends have the same three methods and give the same numbers:

    joint        one softmax over all keys up to the query
    text_joint   the same at text queries; an image query gives its own value
    sum          the text branch plus the image branch at text queries; an image query gives its own value
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

import torch
from torch import Tensor

from .documents import IMAGE, TEXT, Documents
from .fused_attention import INTERPRETED, FusedAttention
from .masks import MaskedSdpa, Masks, SplitCacheSdpa
from .row_permutation import RowPermutation
from .sdpa_segments import SegmentedSdpa
from .tensor_maps import map_tensors

ImageRows = Literal["self", "causal"]
Merge = Literal["sum", "lse"]


class AttentionSwitches(TypedDict):
    """The two switches of attention.py."""

    image_rows: ImageRows
    merge: Merge


SWITCHES: dict[str, AttentionSwitches] = {
    "mmca": {"image_rows": "self", "merge": "sum"},
    "causal": {"image_rows": "causal", "merge": "lse"},
    "dattn": {"image_rows": "self", "merge": "lse"},
}
BACKENDS = ("auto", "sdpa", "triton")


def choose_backend(backend: str, device: torch.device, dtype: torch.dtype, width: int, dropout: float = 0.0) -> str:
    """The back-end for whole sequences, 'triton' or 'sdpa', on `device` for heads of `width` in `dtype`.

    `backend` is one of `BACKENDS`; 'auto' takes the fused kernels where they can run.

    Raises ValueError for an unknown back-end or one that cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention back-end {backend!r}: choose one of {', '.join(BACKENDS)}")
    supported = FusedAttention.is_supported(device, dtype, width, dropout)
    if backend == "triton" and not (supported or INTERPRETED):
        raise ValueError(
            f"the triton back-end cannot compute heads of width {width} in {dtype} on {device.type} with dropout "
            f"{dropout}: it needs CUDA (compute capability 8.0 or higher), triton, half precision and no dropout; use "
            "'auto' or 'sdpa'"
        )
    return "sdpa" if backend == "sdpa" or not (supported or backend == "triton") else "triton"


@dataclass
class AttentionPlan:
    """See the module's docstring. Build one with `build` or `for_split_cache`."""

    key_length: int  # K, the tokens of the cache included
    non_text: Tensor  # (B, T, 1, 1) bool: queries that are not text
    has_text: bool  # among the keys
    has_images: bool
    backend: SegmentedSdpa | FusedAttention | MaskedSdpa | SplitCacheSdpa | None
    masks: Masks | None = None  # only where attention weights are requested
    order: RowPermutation | None = None  # brings the tokens of a batch (B*T) into the one row that the plan is for
    _calls: dict[str, int] = field(default_factory=lambda: {"calls": 0})  # shared with copies on other devices
    _copies: dict[torch.device, AttentionPlan] = field(default_factory=dict, repr=False)

    @classmethod
    @torch.compiler.disable  # sizes depend on where the images lie
    def build(
        cls,
        modality: Tensor,
        length: int | None = None,
        *,
        document_ids: Tensor | None = None,
        image_rows: ImageRows,
        merge: Merge,
        weights: bool = False,
        backend: str = "sdpa",
        unpad: bool = False,
    ) -> AttentionPlan:
        """Plan the attention of a forward over the last `length` (all, if None) of the tokens in `modality`.

        `modality` (B, K) holds 0 for padding, 1 for text and 2 for image; `document_ids` (B, K), 0 at padding and from
        1 elsewhere, separates packed documents. `weights` prepares for attention weights. `backend` for whole sequences
        is 'sdpa' or 'triton', see `choose_backend`. With `unpad` the plan is for one row without padding, where whole
        sequences allow it; its `order` then brings the tokens into that row, unless they lie so already. Use it for
        forwards in which only the attention depends on the order of the tokens.
        Works on the CPU, because sizes are needed there, and returns tensors on the device of `modality`.

        Raises ValueError for document ids that do not match `modality`, or for packed documents behind a cache.
        """
        device = modality.device
        modality = modality.detach().cpu().to(torch.int64)
        ids = None if document_ids is None else document_ids.detach().cpu().to(torch.int64)
        length = modality.shape[1] if length is None else length
        non_text = modality[:, modality.shape[1] - length :, None, None] != TEXT
        has_text, has_images = bool((modality == TEXT).any()), bool((modality == IMAGE).any())
        plan = cls(modality.shape[1], non_text, has_text, has_images, None)
        if weights:
            plan.masks = Masks.build(modality, length, ids)
        elif length < modality.shape[1]:
            if ids is not None:
                raise ValueError("packed documents cannot continue a cache; generate from one document per row")
            plan.backend = MaskedSdpa.build(modality, length, non_text)
        elif has_text or image_rows == "causal":
            documents = Documents.from_modality(modality, ids)
            plan._plan_sequences(documents, image_rows, merge, backend == "triton", unpad)
        return plan.to(device)

    def _plan_sequences(
        self, documents: Documents, image_rows: ImageRows, merge: Merge, fused: bool, unpad: bool
    ) -> None:
        """Set the back-end for whole sequences, prepared for the methods that `attend` will call."""
        # A batch without an image has no second branch, and the first is the softmax over all keys.
        use_sum = merge == "sum" and self.has_images and self.has_text
        use_joint = image_rows == "causal" or not use_sum
        fused = fused and not (use_sum and use_joint)
        every_row = image_rows == "causal"
        if unpad:
            text_first = not every_row if fused else use_sum and not use_joint
            tokens = documents.text_first() if text_first else documents.tokens
            self.order = RowPermutation.from_source(tokens, self.non_text.shape[:2].numel())
            if self.order is not None:
                documents = replace(documents, tokens=self.order.target[documents.tokens])
            if self.order is not None or fused:
                self.non_text = self.non_text.flatten()[tokens].view(1, -1, 1, 1)
                self.key_length = len(tokens)
        if fused:
            self.backend = FusedAttention.build(documents, self.non_text, every_row=every_row, is_joint=not use_sum)
        else:
            self.backend = SegmentedSdpa.build(documents, self.non_text, use_joint, use_sum)

    @classmethod
    def for_split_cache(cls, backend: SplitCacheSdpa, non_text: Tensor, key_length: int) -> AttentionPlan:
        """The plan of text queries whose images lie in a cache of their own, see conversation_cache.py.

        `non_text` (B, T, 1, 1) marks padding; `key_length` counts the keys of text alone.
        """
        return cls(key_length, non_text, True, bool(backend.images), backend)

    @property
    def calls(self) -> int:
        """How often the attention was called with this plan or one of its copies on other devices."""
        return self._calls["calls"]

    def reset_calls(self) -> None:
        """Count from 0 again: a batch may be computed several times."""
        self._calls["calls"] = 0

    def record_call(self) -> None:
        """Count a call of the attention: the model checks that every layer of its decoder makes one."""
        self._calls["calls"] += 1

    def to(self, device: torch.device | str | int, non_blocking: bool = True) -> AttentionPlan:
        """This plan on `device`; a model that is spread over several devices asks for it in every layer."""
        device = torch.device(device)
        if self.non_text.device == device:
            return self
        if device not in self._copies:
            # Towards the CPU a copy must be there before it is read.
            overlaps = non_blocking and device.type != "cpu"
            moved: AttentionPlan = map_tensors(self, lambda x: x.to(device, non_blocking=overlaps))
            self._copies[device] = replace(moved, _copies={})
        return self._copies[device]
