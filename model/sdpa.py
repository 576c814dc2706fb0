"""Scaled dot product attention as all back-ends but the fused one call it: grouped heads, masks, one return shape."""

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
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1 and not causal:
            # The heads of a group read the same keys: as queries of one head they need no copies of them.
            shape = query.shape
            query = query.unflatten(1, (-1, repeats)).flatten(2, 3)
            if mask is not None and mask.shape[2] > 1:
                mask = mask.repeat(1, 1, repeats, 1)
            out = F.scaled_dot_product_attention(query, key, value, mask, self.dropout, scale=self.scaling)
            return out.reshape(shape).transpose(1, 2)
        return F.scaled_dot_product_attention(
            query, key, value, mask, self.dropout, causal, scale=self.scaling, enable_gqa=repeats > 1
        ).transpose(1, 2)
