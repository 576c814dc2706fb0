"""Where the documents of a batch lie, and how their tokens move between a batch and blocks of rows.

A *document* is what attends to itself alone: a whole row of the batch, or one of several packed into a row. Every
back-end of the attention starts from the table of documents that `Documents.from_modality` makes, on the CPU, because sizes are
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
    lengths, text_lengths, image_lengths (D,): how many tokens each document has, and how many of each kind.
    """

    tokens: Tensor
    modality: Tensor
    numbers: Tensor
    lengths: Tensor
    text_lengths: Tensor
    image_lengths: Tensor

    @classmethod
    def from_modality(cls, modality: Tensor, document_ids: Tensor | None = None) -> Documents:
        """Find the documents in `modality` (B, T) on the CPU: each row is one, or `document_ids` (B, T) tells them apart.

        Raises ValueError if `document_ids` is 0 at a token, anything else at padding, or if a document lies in pieces.
        """
        tokens = (modality != PAD).flatten().nonzero()[:, 0]
        names = tokens // max(modality.shape[1], 1)
        if document_ids is not None:
            if document_ids.shape != modality.shape or ((document_ids > 0) != (modality != PAD)).any():
                raise ValueError("document_ids must have the shape of the batch, be 0 at padding and above 0 elsewhere")
            names = names * (int(document_ids.max()) + 1) + document_ids.flatten()[tokens]
        runs, numbers, lengths = names.unique_consecutive(return_inverse=True, return_counts=True)
        if len(runs.unique()) != len(runs):
            raise ValueError("the tokens of a document must lie together in its row of the batch")
        modality = modality.flatten()[tokens]
        images = torch.bincount(numbers[modality == IMAGE], minlength=len(lengths))
        return cls(tokens, modality, numbers, lengths, lengths - images, images)

    def padded_indices(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Lay documents beside each other: for `chosen` (n,) numbers, the place in `tokens` (n, longest) of each token.

        The second tensor (n, longest) tells where there is one; elsewhere the first is 0.
        """
        lengths = self.lengths[chosen]
        filled = torch.arange(int(lengths.max())) < lengths[:, None]
        starts = (self.lengths.cumsum(0) - self.lengths)[chosen]
        return (starts[:, None] + torch.arange(filled.shape[1])).masked_fill(~filled, 0), filled


def compact_left(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the true places of each row of `mask` (n, L) to its left.

    Returns the flat index (n, N) of what lies at each new place, the flat new place (n, L) of each old one (both 0
    where there is none), and which new places are filled (n, N). N is the largest number of true places in a row.
    """
    counts = mask.sum(1)
    filled = torch.arange(int(counts.max())) < counts[:, None]
    index = torch.zeros(filled.shape, dtype=torch.int64).masked_scatter(filled, mask.flatten().nonzero()[:, 0])
    slot = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, filled.flatten().nonzero()[:, 0])
    return index, slot, filled


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, width) -> (B*T, heads*width)"""
    return x.transpose(1, 2).flatten(0, 1).flatten(1)


def split_heads(table: Tensor, batch: int, count: int) -> Tensor:
    """(batch*T, count*width) -> (batch, count, T, width)"""
    return table.view(batch, len(table) // batch, count, table.shape[1] // count).transpose(1, 2)


def select_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a matrix by their number.

    A look-up in an embedding table, because its backward pass is faster than that of other gathers on the CPU.
    """
    return F.embedding(index, table)


def self_values(value: Tensor, query: Tensor) -> Tensor:
    """The values (B, G, K, D) of the queries' own tokens, which are the last T, for all heads: (B, T, H, D)."""
    repeats, length = query.shape[1] // value.shape[1], query.shape[2]
    own = value[:, :, -length:].transpose(1, 2)
    return own if repeats == 1 else own.repeat_interleave(repeats, 2)
