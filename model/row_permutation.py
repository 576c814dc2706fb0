"""Rows of a table moved to other positions, with a backward pass that moves their gradients back.

The gathers of PyTorch add gradients up in their backward pass, since a row may have been selected more than once. That
takes a sort, or additions in whatever order threads finish. Here every row goes to at most one known position, so the
backward pass is a gather too: one kernel, the same result every time.

Shapes: n rows of the source, m rows of the result, both of the same `width`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class RowPermutation:
    """Every row of a table (n, width) goes to at most one position of the result (m, width).

    source (m,): the source row of each result row, 0 where there is none.
    target (n,): the result row of each source row, 0 where it is dropped.
    empty (m, 1), lost (n, 1): true where there is none, and where it is dropped; None if that is nowhere.
    """

    source: Tensor
    target: Tensor
    empty: Tensor | None = None
    lost: Tensor | None = None

    @classmethod
    def from_source(cls, source: Tensor, rows: int) -> RowPermutation | None:
        """Select the rows `source` (m,) of a table of `rows` rows, in this order; None if that changes nothing."""
        target = torch.zeros(rows, dtype=torch.int64)
        target[source] = torch.arange(len(source))
        if len(source) == rows:
            return None if torch.equal(source, torch.arange(rows)) else cls(source, target)
        lost = torch.ones(rows, 1, dtype=torch.bool)
        lost[source] = False
        return cls(source, target, None, lost)

    def inverse(self) -> RowPermutation:
        """The permutation that undoes this one; rows that were dropped come back as zeros."""
        return RowPermutation(self.target, self.source, self.lost, self.empty)

    def __call__(self, table: Tensor) -> Tensor:
        """Move the rows of `table` (n, width). Returns (m, width), with zeros where no row goes."""
        return _PermuteRows.apply(table, self.source, self.target, self.empty, self.lost)


class _PermuteRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, source: Tensor, target: Tensor, empty: Tensor | None, lost: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(target, lost)
        return _gather(table, source, empty)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        target, lost = ctx.saved_tensors
        return _gather(gradient, target, lost), None, None, None, None


def _gather(table: Tensor, index: Tensor, absent: Tensor | None) -> Tensor:
    if len(table) == 0:
        return table.new_zeros(len(index), table.shape[1])
    rows = table.index_select(0, index)
    return rows if absent is None else rows.masked_fill_(absent, 0)
