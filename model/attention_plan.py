"""What a forward knows of its batch before the first layer: where text, images, documents and padding lie.

A layout is built once per forward and read by every layer. It holds a *plan*, which is how the attention is computed:

    gather.py   whole sequences, SDPA over tokens moved together: everywhere
    varlen.py   whole sequences, flash attention over stretches of any length: CUDA, half precision
    masks.py    a few queries that continue a cache

All plans have the same three methods and give the same numbers:

    joint        one softmax over all keys up to the query
    text_joint   the same at text queries; an image query gives its own value
    sum          the text branch plus the image branch at text queries; an image query gives its own value
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .documents import IMAGE, TEXT, Documents
from .masks import MaskedSdpa, Masks, SplitCacheSdpa
from .row_permutation import RowPermutation
from .sdpa_segments import SegmentedSdpa
from .varlen import VarlenFlash

SWITCHES = {
    "mmca": {"image_rows": "self", "merge": "sum"},
    "causal": {"image_rows": "causal", "merge": "lse"},
    "dattn": {"image_rows": "self", "merge": "lse"},
}
BACKENDS = ("auto", "sdpa", "varlen")


@dataclass
class AttentionPlan:
    """See the module. Build one with `build` or `split`."""

    key_length: int  # K, the tokens of the cache included
    own: Tensor  # (B, T, 1, 1) bool: queries that are no text
    has_text: bool  # among the keys
    has_images: bool
    backend: SegmentedSdpa | VarlenFlash | MaskedSdpa | SplitCacheSdpa | None
    masks: Masks | None = None  # only where attention weights are wanted
    order: RowPermutation | None = None  # brings the rows of a batch, (B*T, width), into the order of a flat layout
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
        image_rows: str,
        merge: str,
        weights: bool = False,
        backend: str = "auto",
        dtype: torch.dtype = torch.float32,
        width: int = 0,
        dropout: float = 0.0,
        unpad: bool = False,
    ) -> AttentionPlan:
        """Compute the layout of a forward over the last `length` (all, if None) of the tokens in `modality`.

        `modality` (B, K) holds 0 for padding, 1 for text and 2 for image; `document_ids` (B, K), 0 at padding and from
        1 elsewhere, tells packed documents apart. `weights` prepares for attention weights. `backend` is one of
        `BACKENDS`; 'auto' takes the varlen kernel where it can compute heads of `width` in `dtype` with `dropout`.
        With `unpad` the layout may be that of one row without padding, into whose order its `order` then brings tokens:
        for forwards in which nothing but the attention minds where tokens lie.
        Works on the CPU, because sizes are needed there, and returns tensors on the device of `modality`.

        Raises ValueError for document ids that do not fit, packed documents behind a cache, or a back-end that cannot
        run here.
        """
        device = modality.device
        modality = modality.detach().cpu().to(torch.int64)
        ids = None if document_ids is None else document_ids.detach().cpu().to(torch.int64)
        length = modality.shape[1] if length is None else length
        own = modality[:, modality.shape[1] - length :, None, None] != TEXT
        attention_plan = cls(
            modality.shape[1], own, bool((modality == TEXT).any()), bool((modality == IMAGE).any()), None
        )
        if weights:
            attention_plan.masks = Masks.build(modality, length, ids)
        elif length < modality.shape[1]:
            if ids is not None:
                raise ValueError("packed documents cannot continue a cache; generate from one document per row")
            attention_plan.backend = MaskedSdpa.build(modality, length, own)
        elif attention_plan.has_text or image_rows == "causal":
            varlen = VarlenFlash.is_supported(device, dtype, width, dropout)
            if backend == "varlen" and not varlen:
                raise ValueError(
                    f"the varlen back-end cannot compute heads of width {width} in {dtype} on {device.type} with "
                    f"dropout {dropout}: it needs CUDA, half precision and no dropout; use 'auto' or 'sdpa'"
                )
            documents = Documents.from_modality(modality, ids)
            # A batch without an image has no second branch, and the first is the softmax over all keys.
            sum_ = merge == "sum" and attention_plan.has_images and attention_plan.has_text
            text_joint = not sum_ and image_rows == "self"
            joint = image_rows == "causal" or not (sum_ or text_joint)
            if varlen and backend != "sdpa":
                attention_plan.backend = VarlenFlash.build(documents, own, joint or text_joint, sum_)
                if unpad and (found := attention_plan.backend.unpadded()):
                    attention_plan.backend, attention_plan.order = found
                    attention_plan.own, attention_plan.key_length = (
                        attention_plan.backend.own,
                        attention_plan.backend.own.shape[1],
                    )
            else:
                attention_plan.backend = SegmentedSdpa.build(documents, own, joint or text_joint, sum_)
        return attention_plan.to(device)

    @classmethod
    def split(cls, plan: SplitCacheSdpa, own: Tensor, key_length: int) -> AttentionPlan:
        """The layout of text queries (`own` (B, T, 1, 1) marks padding) whose images lie apart, see cache.py."""
        return cls(key_length, own, True, bool(plan.images), plan)

    @property
    def calls(self) -> int:
        """How often the attention was called with this layout or one of its copies on other devices."""
        return self._calls["calls"]

    def record_call(self) -> None:
        """Note a call of the attention: the model checks that its decoder really makes them."""
        self._calls["calls"] += 1

    def to(self, device: torch.device | str | int, non_blocking: bool = True) -> AttentionPlan:
        """This layout on `device`; models spread over several devices ask for it in every layer."""
        device = torch.device(device)
        if self.own.device == device:
            return self
        if device not in self._copies:
            self._copies[device] = _moved(self, device, non_blocking)
        return self._copies[device]


def _moved(value: Any, device: torch.device, non_blocking: bool) -> Any:
    """A copy of a dataclass or list with all its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, list):
        return [_moved(item, device, non_blocking) for item in value]
    if is_dataclass(value):
        changes = {item.name: _moved(getattr(value, item.name), device, non_blocking) for item in fields(value)}
        return replace(value, **changes)
    return value
