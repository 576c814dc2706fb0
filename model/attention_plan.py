"""The attention plan: where the text, images, documents and padding of a batch lie, and how its attention is computed.

A plan is built once per forward and read by every layer. It holds a *back-end*, which computes the attention:

    sdpa_segments.py   whole sequences, SDPA over compacted tokens: everywhere
    varlen.py          whole sequences, flash attention over variable-length sequences: CUDA, half precision
    masks.py           a few queries that continue a cache

All back-ends have the same three methods and give the same numbers:

    joint        one softmax over all keys up to the query
    text_joint   the same at text queries; an image query gives its own value
    sum          the text branch plus the image branch at text queries; an image query gives its own value
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from .documents import IMAGE, TEXT, Documents
from .masks import MaskedSdpa, Masks, SplitCacheSdpa
from .row_permutation import RowPermutation
from .sdpa_segments import SegmentedSdpa
from .varlen import VarlenFlash

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
BACKENDS = ("auto", "sdpa", "varlen")


@dataclass
class AttentionPlan:
    """See the module's docstring. Build one with `build` or `for_split_cache`."""

    key_length: int  # K, the tokens of the cache included
    non_text: Tensor  # (B, T, 1, 1) bool: queries that are not text
    has_text: bool  # among the keys
    has_images: bool
    backend: SegmentedSdpa | VarlenFlash | MaskedSdpa | SplitCacheSdpa | None
    masks: Masks | None = None  # only where attention weights are requested
    order: RowPermutation | None = None  # brings the rows of a batch, (B*T, width), into the order of an unpadded plan
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
        backend: str = "auto",
        dtype: torch.dtype = torch.float32,
        width: int = 0,
        dropout: float = 0.0,
        unpad: bool = False,
    ) -> AttentionPlan:
        """Plan the attention of a forward over the last `length` (all, if None) of the tokens in `modality`.

        `modality` (B, K) holds 0 for padding, 1 for text and 2 for image; `document_ids` (B, K), 0 at padding and from
        1 elsewhere, separates packed documents. `weights` prepares for attention weights. `backend` is one of
        `BACKENDS`; 'auto' takes the varlen kernel where it can compute heads of `width` in `dtype` with `dropout`.
        With `unpad` the plan may be for one row without padding; its `order` then brings the tokens into that row. Use
        it for forwards in which only the attention depends on the order of the tokens.
        Works on the CPU, because sizes are needed there, and returns tensors on the device of `modality`.

        Raises ValueError for an unknown back-end or one that cannot run here, for document ids that do not match
        `modality`, or for packed documents behind a cache.
        """
        if backend not in BACKENDS:
            raise ValueError(f"unknown attention back-end {backend!r}: choose one of {', '.join(BACKENDS)}")
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
            varlen = VarlenFlash.is_supported(device, dtype, width, dropout)
            if backend == "varlen" and not varlen:
                raise ValueError(
                    f"the varlen back-end cannot compute heads of width {width} in {dtype} on {device.type} with "
                    f"dropout {dropout}: it needs CUDA, half precision and no dropout; use 'auto' or 'sdpa'"
                )
            plan._plan_sequences(
                Documents.from_modality(modality, ids),
                image_rows,
                merge,
                varlen=varlen and backend != "sdpa",
                unpad=unpad,
            )
        return plan.to(device)

    def _plan_sequences(
        self, documents: Documents, image_rows: ImageRows, merge: Merge, *, varlen: bool, unpad: bool
    ) -> None:
        """Set the back-end for whole sequences, prepared for the methods that `attend` will call."""
        # A batch without an image has no second branch, and the first is the softmax over all keys.
        use_sum = merge == "sum" and self.has_images and self.has_text
        use_joint = image_rows == "causal" or not use_sum
        if not varlen:
            self.backend = SegmentedSdpa.build(documents, self.non_text, use_joint, use_sum)
            return
        backend = VarlenFlash.build(documents, self.non_text, use_joint, use_sum)
        if unpad and (unpadded := backend.unpadded()):
            backend, self.order = unpadded
            self.non_text, self.key_length = backend.non_text, backend.non_text.shape[1]
        self.backend = backend

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

    def record_call(self) -> None:
        """Count a call of the attention: the model checks that every layer of its decoder makes one."""
        self._calls["calls"] += 1

    def to(self, device: torch.device | str | int, non_blocking: bool = True) -> AttentionPlan:
        """This plan on `device`; a model that is spread over several devices asks for it in every layer."""
        device = torch.device(device)
        if self.non_text.device == device:
            return self
        if device not in self._copies:
            self._copies[device] = _to_device(self, device, non_blocking)
        return self._copies[device]


def _to_device(value: Any, device: torch.device, non_blocking: bool) -> Any:
    """A copy of a dataclass or list with all its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, list):
        return [_to_device(item, device, non_blocking) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        changes = {item.name: _to_device(getattr(value, item.name), device, non_blocking) for item in fields(value)}
        return replace(value, **changes)
    return value
