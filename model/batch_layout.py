"""The layout of a batch: everything that follows from where its text, images, documents and labels lie.

All of it has sizes that depend on the data, so it is computed on the CPU: in training by the processes that prepare
batches. A forward then needs nothing from the GPU in order to go on, and the CPU runs ahead of it.

A decoder's rows are tokens in the order of the attention plan: a batch as it is, or where nothing but the attention
depends on the order of tokens, one row without padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attention_plan import AttentionPlan, ImageRows, Merge
from .documents import IMAGE, PAD, compute_position_ids
from .row_permutation import RowPermutation
from .template import IGNORE_INDEX
from .tensor_maps import map_tensors

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class LayoutOptions:
    """What the preparation of a batch needs to know of a model.

    The switches of its attention, the back-end by name ('sdpa' or 'triton'), and the rows of its head.
    """

    image_rows: ImageRows
    merge: Merge
    backend: str
    vocabulary: int


@dataclass
class BatchLayout:
    """See the module's docstring; build one with `build`.

    attention: the plan of the attention.
    position_ids: (rows of the decoder, tokens) the position of every token in its document.
    text (n,): the tokens (in B*T) that are embedded: all but those of images.
    image_tokens: how many tokens of images there are.
    place: brings embedded tokens, followed by those of images, into the decoder's rows; None: they are in order.
    shape: (B, T), of the batch.
    """

    attention: AttentionPlan
    position_ids: Tensor
    text: Tensor
    image_tokens: int
    place: RowPermutation | None
    shape: tuple[int, int]

    @classmethod
    @torch.compiler.disable  # sizes depend on the data
    def build(
        cls,
        modality: Tensor,
        length: int | None = None,
        *,
        options: LayoutOptions,
        document_ids: Tensor | None = None,
        weights: bool = False,
        unpad: bool = True,
    ) -> BatchLayout:
        """Plan a forward over the last `length` (all, if None) of the tokens in `modality` (B, K).

        `document_ids`, `weights` and `unpad` are those of `AttentionPlan.build`. The result is on the CPU.

        Raises ValueError as that does.
        """
        modality = modality.detach().cpu().to(torch.int64)
        ids = None if document_ids is None else document_ids.detach().cpu().to(torch.int64)
        length = modality.shape[1] if length is None else length
        attention = AttentionPlan.build(
            modality,
            length,
            document_ids=ids,
            image_rows=options.image_rows,
            merge=options.merge,
            backend=options.backend,
            weights=weights,
            unpad=unpad,
        )
        new = modality[:, modality.shape[1] - length :]
        positions = compute_position_ids(modality, ids)[:, modality.shape[1] - length :]
        order = torch.arange(new.numel()) if attention.order is None else attention.order.source
        positions = positions.flatten()[order].view(attention.non_text.shape[:2])
        is_image = new.flatten()[order] == IMAGE
        places = torch.cat([(~is_image).nonzero()[:, 0], is_image.nonzero()[:, 0]])
        place = RowPermutation.from_source(places.argsort(), len(places))
        return cls(attention, positions, order[~is_image], int(is_image.sum()), place, (len(new), length))

    def to(self, device: torch.device) -> BatchLayout:
        """This layout on `device`."""
        if self.position_ids.device == device:
            return self
        moved: BatchLayout = map_tensors(self, lambda x: x.to(device))
        return moved

    @property
    def tokens(self) -> int:
        """The number of rows that the decoder computes."""
        return self.position_ids.numel()

    def embed(self, embed: Callable[[Tensor], Tensor], input_ids: Tensor) -> Tensor:
        """Embed the tokens `input_ids` (B, T) that are not of images. Returns (n, width)."""
        return embed(input_ids.flatten().index_select(0, self.text))

    def select(self, inputs_embeds: Tensor) -> Tensor:
        """What `embed` returns, from the embeddings (B, T, width) of all tokens."""
        return inputs_embeds.flatten(0, 1).index_select(0, self.text)

    def join(self, text: Tensor, images: Tensor | None) -> Tensor:
        """The decoder's rows (rows, tokens, width) from embedded text (n, width) and images (image_tokens, width)."""
        table = text if images is None else torch.cat([text, images.to(text)])
        table = table if self.place is None else self.place(table)
        return table.view(*self.position_ids.shape, -1)

    def arrange(self, values: Tensor) -> Tensor:
        """Numbers of the batch's tokens (B or 1, T) as numbers of the decoder's rows."""
        flat = values.to(self.position_ids.device).expand(self.shape).flatten()
        order = self.attention.order
        return (flat if order is None else flat.index_select(0, order.source)).view(self.position_ids.shape)

    def restore(self, hidden: Tensor) -> Tensor:
        """The decoder's rows in the order of the batch: (B, T, width), zeros at padding that was left out."""
        order = self.attention.to(hidden.device).order
        table = hidden.flatten(0, 1)
        return (table if order is None else order.inverse()(table)).view(*self.shape, -1)


@dataclass
class LabelIndex:
    """Where the labels of a batch are predicted.

    selection: of the decoder's rows, flat, those that predict a label. targets (n,): the labels. documents (n,): the
    document of each, counted in reading order over the whole batch.
    """

    selection: RowPermutation | None
    targets: Tensor
    documents: Tensor

    @classmethod
    @torch.compiler.disable  # sizes depend on the data
    def build(
        cls,
        labels: Tensor,
        modality: Tensor,
        document_ids: Tensor | None = None,
        order: RowPermutation | None = None,
    ) -> LabelIndex:
        """Find the labels (B, T, not shifted, -100 where there is none) of a batch, on the CPU.

        `modality` and `document_ids` (B, T) are those of the model; `order` is that of the attention plan, if the
        decoder's rows are not in the order of the batch.

        Without `document_ids` every row of the batch is a document. The first token of a document is predicted neither
        from the document before nor from padding.
        """
        labels = labels.detach().cpu()[:, 1:]
        labelled = (labels != IGNORE_INDEX) & (modality.detach().cpu()[:, :-1] != PAD)
        if document_ids is None:
            documents = torch.arange(len(labels))[:, None].expand_as(labels)
        else:
            ids = document_ids.detach().cpu()
            starts = (ids.diff(dim=1, prepend=torch.zeros_like(ids[:, :1])) != 0) & (ids != 0)
            documents = (starts.flatten().cumsum(0) - 1).view_as(starts)[:, 1:]
            labelled = labelled & ~starts[:, 1:]
        batch_rows, before = labelled.nonzero(as_tuple=True)
        total = labels.shape[0] * (labels.shape[1] + 1)
        rows = batch_rows * (labels.shape[1] + 1) + before
        if order is not None:
            rows, total = order.target[rows], len(order.source)
        return cls(RowPermutation.from_source(rows, total), labels[labelled], documents[labelled])

    def select(self, hidden: Tensor) -> Tensor:
        """The rows (n, width) of `hidden` (rows, tokens, width) that predict a label."""
        table = hidden.flatten(0, 1)
        return table if self.selection is None else self.selection(table)

    def to(self, device: torch.device) -> LabelIndex:
        """This index on `device`."""
        if self.targets.device == device:
            return self
        moved: LabelIndex = map_tensors(self, lambda x: x.to(device))
        return moved
