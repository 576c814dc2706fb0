"""Scaled dot product attention as all back-ends but the varlen one call it: grouped heads, masks, one return shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sdpa:
    """The kernel with the options that are the same for all calls of a layer. `scaling` None is 1 / sqrt(D)."""

    dropout: float = 0.0
    scaling: float | None = None

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend from `query` (B, H, T, D) to `key` and `value` (B, G, K, D), H a multiple of G. Returns (B, T, H, D).

        `mask` (B or 1, 1, T, K) is true where a query may attend; `causal` needs T = K.
        """
        groups = query.shape[1] // key.shape[1]
        if mask is not None and groups > 1:  # the fast kernels that take a mask do not support grouped heads
            key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
        return F.scaled_dot_product_attention(
            query, key, value, mask, self.dropout, causal, scale=self.scaling, enable_gqa=groups > 1
        ).transpose(1, 2)
