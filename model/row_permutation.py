"""Rows of a table moved to other places, with a backward pass that moves their gradients back.

The library's gathers add gradients up in their backward pass, since a row may have been taken more than once. That
takes a sort, or additions in whatever order threads finish. Here it is known beforehand where every row went, so that
the way back is a gather too: one kernel, the same result every time.

Shapes: n rows of a table of `width`, m rows of what is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RowPermutation:
    """Every row of a table (n, width) goes to at most one place of the result (m, width).

    source (m,): the row that comes to each place; 0 where none does, which `empty` (m, 1) tells, or is None.
    target (n,): the place that each row goes to; 0 where it goes nowhere, which `lost` (n, 1) tells, or is None.
    """

    source: Tensor
    target: Tensor
    empty: Tensor | None = None
    lost: Tensor | None = None

    @classmethod
    def from_source(cls, source: Tensor, rows: int) -> RowPermutation | None:
        """The move of the rows `source` (m,) of a table of `rows` to the front; None if all stay where they are."""
        target = torch.zeros(rows, dtype=torch.int64)
        target[source] = torch.arange(len(source))
        if len(source) == rows:
            return None if torch.equal(source, torch.arange(rows)) else cls(source, target)
        lost = torch.ones(rows, 1, dtype=torch.bool)
        lost[source] = False
        return cls(source, target, None, lost)

    def inverse(self) -> RowPermutation:
        """The move that undoes this one; what was lost comes back as zeros."""
        return RowPermutation(self.target, self.source, self.lost, self.empty)

    def __call__(self, table: Tensor) -> Tensor:
        """Move the rows of `table` (n, width). Returns (m, width), with zeros where nothing came."""
        return _Moved.apply(table, self.source, self.target, self.empty, self.lost)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, source: Tensor, target: Tensor, empty: Tensor | None, lost: Tensor | None):
        ctx.save_for_backward(target, lost)
        return _rows(table, source, empty)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _rows(gradient, *ctx.saved_tensors), None, None, None, None


def _rows(table: Tensor, index: Tensor, absent: Tensor | None) -> Tensor:
    rows = table.index_select(0, index)
    return rows if absent is None else rows.masked_fill_(absent, 0)
