"""The head and its loss at the labels of a batch, without the logits of all labels at once.

Logits in float32 and their gradient take 8 bytes for every label and token of the vocabulary: 2.4 GB for 2,000 labels
of Qwen 3. So labels are taken in chunks; the logits of a chunk live only while its losses are computed, and are
computed again in the backward pass. That costs the head one more forward pass, and nothing where all labels fit one
chunk.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 26
"""Logits of a chunk: 256 MiB in float32."""


def chunks_needed(labels: int, vocabulary: int) -> int:
    """The least number of chunks, at least one, for so many labels."""
    return max(1, -(-labels * vocabulary // CHUNK_LOGITS))


def head_losses(head: nn.Module, hidden: Tensor, targets: Tensor, chunks: int) -> Tensor:
    """The cross entropies (n,) of `targets` (n,) by the logits that `head` computes from `hidden` (n, width).

    The head is called `chunks` times. Losses are computed in float32, or in float64 if the logits are.
    """
    if chunks == 1:
        return _losses(head, hidden, targets)
    parts = zip(hidden.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
    # Keeping the state of the random numbers waits for the GPU, and without dropout the head draws none.
    is_random = any(isinstance(module, nn.Dropout) for module in head.modules())
    return torch.cat(
        [
            cast(Tensor, checkpoint(_losses, head, *part, use_reentrant=False, preserve_rng_state=is_random))
            for part in parts
        ]
    )


def _losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")
