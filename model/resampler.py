"""A resampler: a fixed number of learned queries attends to the features of an image in one cross-attention.

Used by the projector `perceiver` and, with its own weights, by Qwen-VL's encoder (arXiv 2308.12966, section 3.1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init


class Resampler(nn.Module):
    """Queries on a square grid attend to features on a square grid; both have 2-D sine-cosine position embeddings."""

    pos_embed: Tensor

    def __init__(self, queries: int, width: int, heads: int, feature_width: int, eps: float = 1e-6) -> None:
        """`queries` is a square number; `width` of the result is a multiple of 4 and of `heads`.

        Raises ValueError otherwise.
        """
        super().__init__()
        if math.isqrt(queries) ** 2 != queries or width % 4 or width % heads:
            raise ValueError(
                f"{queries} queries of width {width} with {heads} heads: the number of queries must be a square, and "
                "the width a multiple of 4 and of the number of heads"
            )
        self.query = nn.Parameter(torch.zeros(queries, width))
        self.kv_proj = nn.Linear(feature_width, width, bias=False) if feature_width != width else nn.Identity()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=eps)
        self.ln_kv = nn.LayerNorm(width, eps=eps)
        # Fixed, but saved with the weights, which were trained with exactly these numbers.
        self.register_buffer("pos_embed", sincos_position_embedding(math.isqrt(queries), width))

    def init_weights(self) -> None:
        """Initialise the parameters that `PreTrainedModel._init_weights` does not handle."""
        init.normal_(self.query, std=0.02)
        init.copy_(self.pos_embed, sincos_position_embedding(math.isqrt(len(self.query)), self.query.shape[1]))

    def forward(self, features: Tensor) -> Tensor:
        """Resample features (N, features, feature_width) to (N, queries, width)."""
        keys = self.ln_kv(self.kv_proj(features))
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(features), -1, -1)
        positions = interpolate_positions(self.pos_embed, features.shape[1])
        return self.attn(queries, keys + positions, keys, need_weights=False)[0]


def sincos_position_embedding(side: int, width: int) -> Tensor:
    """2-D position embeddings of a `side` x `side` grid, row by row: (side * side, width).

    The first half encodes the column, the second the row; each half holds sines, then cosines, of
    position / 10000^(i/n) for i = 0 ... n - 1, n = width / 4 (arXiv 2111.06377, appendix A).
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), 1)
    return torch.cat((line.repeat(side, 1), line.repeat_interleave(side, 0)), 1).float()


def interpolate_positions(positions: Tensor, count: int) -> Tensor:
    """Interpolate the position embeddings (n, width) of a square grid to `count` positions: (count, width); bicubic."""
    if len(positions) == count:
        return positions
    sides = [math.isqrt(len(positions)), math.isqrt(count)]
    precise = positions.to(torch.promote_types(positions.dtype, torch.float32))
    grid = precise.view(1, sides[0], sides[0], -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)
