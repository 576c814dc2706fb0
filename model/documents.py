"""Where the documents of a batch lie, and how their tokens move between a batch and blocks of rows.

A *document* attends to itself alone: a whole row of the batch, or one of several packed into a row. Every back-end of
the attention starts from the table of documents that `Documents.from_modality` makes, on the CPU, because sizes are
needed there.

Shapes: B rows, T tokens of a row, M tokens that are not padding, D documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PAD, TEXT, IMAGE = 0, 1, 2


@dataclass
class Documents:
    """The tokens of a batch without its padding, document by document, each in its own order.

    tokens (M,): their flat index in the batch (B*T). modality (M,): TEXT or IMAGE. numbers (M,): the document of each.
    lengths, text_lengths, image_lengths (D,): how many tokens each document has in all, of text and of images.
    """

    tokens: Tensor
    modality: Tensor
    numbers: Tensor
    lengths: Tensor
    text_lengths: Tensor
    image_lengths: Tensor

    @classmethod
    def from_modality(cls, modality: Tensor, document_ids: Tensor | None = None) -> Documents:
        """Find the documents in `modality` (B, T), on the CPU: one per row, or those that `document_ids` (B, T) names.

        Raises ValueError if `document_ids` is 0 at a token or not 0 at padding, or if the tokens of a document are not
        contiguous.
        """
        tokens = (modality != PAD).flatten().nonzero()[:, 0]
        names = tokens // max(modality.shape[1], 1)
        if document_ids is not None:
            if document_ids.shape != modality.shape or ((document_ids > 0) != (modality != PAD)).any():
                raise ValueError("document_ids must have the shape of the batch, be 0 at padding and above 0 elsewhere")
            names = names * (int(document_ids.max()) + 1) + document_ids.flatten()[tokens]
        runs, numbers, lengths = names.unique_consecutive(return_inverse=True, return_counts=True)
        if len(runs.unique()) != len(runs):
            raise ValueError("the tokens of a document must be contiguous in their row of the batch")
        modality = modality.flatten()[tokens]
        image_lengths = torch.bincount(numbers[modality == IMAGE], minlength=len(lengths))
        return cls(tokens, modality, numbers, lengths, lengths - image_lengths, image_lengths)

    def text_first(self) -> Tensor:
        """The tokens (M,) in flat order: the text of all documents end to end, then their images."""
        is_text = self.modality == TEXT
        return torch.cat([self.tokens[is_text], self.tokens[~is_text]])

    def padded_indices(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Lay the documents `numbers` (n,) out as rows: the index (n, longest) into `tokens` of each of their tokens.

        The second tensor (n, longest) is true where there is a token; elsewhere the first is 0.
        """
        lengths = self.lengths[numbers]
        filled = torch.arange(int(lengths.max())) < lengths[:, None]
        starts = (self.lengths.cumsum(0) - self.lengths)[numbers]
        return (starts[:, None] + torch.arange(filled.shape[1])).masked_fill(~filled, 0), filled


def compute_position_ids(modality: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """The position (B, T) of every token in its document, padding not counted."""
    positions = (modality != PAD).cumsum(1) - 1
    if document_ids is not None:
        begins = document_ids.to(positions.device).diff(dim=1, prepend=torch.zeros_like(positions[:, :1])) != 0
        positions = positions - torch.where(begins, positions, 0).cummax(1).values
    return positions.clamp(min=0)


def compact_left(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the true elements of each row of `mask` (n, L) to its left, into N slots.

    Returns `index` (n, N), the flat index in `mask` of the element in each slot; `slot` (n, L), the flat slot of each
    element (both 0 where there is none); and `filled` (n, N), which slots hold an element. N is the largest number of
    true elements in a row.
    """
    counts = mask.sum(1)
    filled = torch.arange(int(counts.max())) < counts[:, None]
    index = torch.zeros(filled.shape, dtype=torch.int64).masked_scatter(filled, mask.flatten().nonzero()[:, 0])
    slot = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, filled.flatten().nonzero()[:, 0])
    return index, slot, filled


def merge_heads(x: Tensor) -> Tensor:
    """Turn (B, heads, T, width) into a table of rows (B*T, heads*width)."""
    return x.transpose(1, 2).flatten(0, 1).flatten(1)


def split_heads(table: Tensor, batch: int, heads: int) -> Tensor:
    """Turn a table of rows (batch*T, heads*width) into (batch, heads, T, width)."""
    return table.view(batch, len(table) // batch, heads, table.shape[1] // heads).transpose(1, 2)


def select_rows(table: Tensor, index: Tensor) -> Tensor:
    """Select rows of a table (n, width) by `index` (m,): (m, width).

    A look-up in an embedding table, because its backward pass is faster than that of other gathers on the CPU.
    """
    return F.embedding(index, table)


def self_values(value: Tensor, query: Tensor) -> Tensor:
    """The values of the queries' own tokens: the last T of `value` (B, G, K, D), for all heads, as (B, T, H, D)."""
    repeats, length = query.shape[1] // value.shape[1], query.shape[2]
    values = value[:, :, -length:].transpose(1, 2)
    return values if repeats == 1 else values.repeat_interleave(repeats, 2)
