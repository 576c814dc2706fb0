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
from .gather import GatherPlan
from .masks import MaskedPlan, Masks, SplitPlan
from .moves import Move
from .varlen import VarlenPlan

SWITCHES = {
    "mmca": {"image_rows": "self", "merge": "sum"},
    "causal": {"image_rows": "causal", "merge": "lse"},
    "dattn": {"image_rows": "self", "merge": "lse"},
}
BACKENDS = ("auto", "gather", "varlen")


@dataclass
class Layout:
    """See the module. Build one with `build` or `split`."""

    key_length: int  # K, the tokens of the cache included
    own: Tensor  # (B, T, 1, 1) bool: queries that are no text
    has_text: bool  # among the keys
    has_images: bool
    plan: GatherPlan | VarlenPlan | MaskedPlan | SplitPlan | None
    masks: Masks | None = None  # only where attention weights are wanted
    order: Move | None = None  # brings the rows of a batch, (B*T, width), into the order of a flat layout
    _calls: dict[str, int] = field(default_factory=lambda: {"calls": 0})  # shared with copies on other devices
    _copies: dict[torch.device, Layout] = field(default_factory=dict, repr=False)

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
        flat: bool = False,
    ) -> Layout:
        """Compute the layout of a forward over the last `length` (all, if None) of the tokens in `modality`.

        `modality` (B, K) holds 0 for padding, 1 for text and 2 for image; `document_ids` (B, K), 0 at padding and from
        1 elsewhere, tells packed documents apart. `weights` prepares for attention weights. `backend` is one of
        `BACKENDS`; 'auto' takes the varlen kernel where it can compute heads of `width` in `dtype` with `dropout`.
        With `flat` the layout may be that of one row without padding, into whose order its `order` then brings tokens:
        for forwards in which nothing but the attention minds where tokens lie.
        Works on the CPU, because sizes are needed there, and returns tensors on the device of `modality`.

        Raises ValueError for document ids that do not fit, packed documents behind a cache, or a back-end that cannot
        run here.
        """
        device = modality.device
        kinds = modality.detach().cpu().to(torch.int64)
        ids = None if document_ids is None else document_ids.detach().cpu().to(torch.int64)
        length = kinds.shape[1] if length is None else length
        own = kinds[:, kinds.shape[1] - length :, None, None] != TEXT
        layout = cls(kinds.shape[1], own, bool((kinds == TEXT).any()), bool((kinds == IMAGE).any()), None)
        if weights:
            layout.masks = Masks.build(kinds, length, ids)
        elif length < kinds.shape[1]:
            if ids is not None:
                raise ValueError("packed documents cannot continue a cache; generate from one document per row")
            layout.plan = MaskedPlan.build(kinds, length, own)
        elif layout.has_text or image_rows == "causal":
            varlen = VarlenPlan.runs(device, dtype, width, dropout)
            if backend == "varlen" and not varlen:
                raise ValueError(
                    f"the varlen back-end cannot compute heads of width {width} in {dtype} on {device.type} with "
                    f"dropout {dropout}: it needs CUDA, half precision and no dropout; use 'auto' or 'gather'"
                )
            documents = Documents.find(kinds, ids)
            # A batch without an image has no second branch, and the first is the softmax over all keys.
            sum_ = merge == "sum" and layout.has_images and layout.has_text
            text_joint = not sum_ and image_rows == "self"
            joint = image_rows == "causal" or not (sum_ or text_joint)
            if varlen and backend != "gather":
                layout.plan = VarlenPlan.build(documents, own, joint or text_joint, sum_)
                if flat and (found := layout.plan.flattened()):
                    layout.plan, layout.order = found
                    layout.own, layout.key_length = layout.plan.own, layout.plan.own.shape[1]
            else:
                layout.plan = GatherPlan.build(documents, own, joint or text_joint, sum_)
        return layout.to(device)

    @classmethod
    def split(cls, plan: SplitPlan, own: Tensor, key_length: int) -> Layout:
        """The layout of text queries (`own` (B, T, 1, 1) marks padding) whose images lie apart, see cache.py."""
        return cls(key_length, own, True, bool(plan.images), plan)

    @property
    def calls(self) -> int:
        """How often the attention was called with this layout or one of its copies on other devices."""
        return self._calls["calls"]

    def called(self) -> None:
        """Note a call of the attention: the model checks that its decoder really makes them."""
        self._calls["calls"] += 1

    def to(self, device: torch.device | str | int, non_blocking: bool = True) -> Layout:
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
