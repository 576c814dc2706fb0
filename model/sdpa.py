"""Scaled dot product attention as every plan but the varlen one calls it: grouped heads, masks, one return shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sdpa:
    """The kernel with what stays the same within a layer. `scaling` None is 1 / sqrt(D)."""

    dropout: float = 0.0
    scaling: float | None = None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend from `query` (B, H, T, D) to `key` and `value` (B, G, K, D), H a multiple of G. Returns (B, T, H, D).

        `mask` (B or 1, 1, T, K) is true where a query reads; `causal` needs T = K.
        """
        groups = query.shape[1] // key.shape[1]
        if mask is not None and groups > 1:  # the fast kernels that take a mask know no grouped heads
            key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
        return F.scaled_dot_product_attention(
            query, key, value, mask, self.dropout, causal, scale=self.scaling, enable_gqa=groups > 1
        ).transpose(1, 2)
