"""Attention over text and images in two branches: MMCA, causal and D-Attn as one registered function with two switches.

For a text token with query q, keys and values of the text up to itself (t) and of the images before it (i), MMCA
(multi-modal causal attention, arXiv 2309.14327, figure 4) is

    out = softmax(q K_t^T * scaling) V_t  +  softmax(q K_i^T * scaling) V_i

where the second term is 0 if no image precedes the token. An image token attends to itself alone, so its row is its own
value. The switches:

    image_rows   'self'    an image row is its own value
                 'causal'  an image row attends to everything before it
    merge        'sum'     each branch has its own softmax, and the results are added
                 'lse'     the branches are merged by log-sum-exp, which equals one softmax over the keys of both

    name      image_rows   merge
    mmca      self         sum
    causal    causal       lse       ordinary causal attention
    dattn     self         lse       D-Attn, arXiv 2502.01906

Importing this module registers the names in the AttentionInterface of `transformers` and, on purpose, not in its
AttentionMaskInterface, so that `transformers` builds no mask. How the attention is computed is decided by the attention
plan (attention_plan.py); how a decoder gets it, by decoders.py.

Shapes: B batch, H heads, G key-value heads, D head width, T tokens of this forward, K tokens including the cache.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from .attention_plan import SWITCHES, AttentionPlan, ImageRows, Merge
from .documents import self_values
from .masks import attend_with_weights
from .sdpa import Sdpa

# training_mixin.py imports SWITCHES from here: it needs the registration at the end of this file.
__all__ = ["SWITCHES", "attend"]

# Arguments that some decoders pass to their attention function. Ignoring one would give wrong results.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "sinks", "position_bias", "head_mask")


class AttentionModule(Protocol):
    """What `attend` reads of the decoder's attention module."""

    layer_idx: int


@torch.compiler.disable  # its calls depend on where the images lie
def attend(
    module: AttentionModule | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    image_rows: ImageRows,
    merge: Merge,
    scaling: float | None = None,
    dropout: float = 0.0,
    attention_plan: AttentionPlan | None = None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Attention function with the signature that `transformers` calls.

    `query` (B, H, T, D); `key` and `value` (B, G, K, D), the cache included, with H a multiple of G. Returns
    (B, T, H, D), in which rows of padding are undefined, and the weights (B, H, T, K), or None if the plan does not
    request them.

    Raises ValueError without a plan, if the plan is for another number of keys, or if the decoder passes an argument or
    a mask that this function does not support.
    """
    if attention_plan is None:
        raise ValueError(
            "this attention needs to know where text and images lie: call VisualChatForConditionalGeneration, "
            "not its language model alone"
        )
    if attention_plan.key_length != key.shape[2]:
        raise ValueError(
            f"the attention got {key.shape[2]} keys, but a plan for {attention_plan.key_length} tokens; "
            "only a DynamicCache that this model filled can be continued"
        )
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"the decoder passes {name!r} to its attention, which is not supported")
    if attention_mask is not None and attention_mask.numel() > 1:
        raise ValueError("the decoder passes its own attention mask, which is not supported and would be ignored")
    attention_plan.record_call()

    non_text, backend = attention_plan.non_text, attention_plan.backend
    if attention_plan.masks is not None:
        return attend_with_weights(
            query,
            key,
            value,
            attention_plan.masks,
            non_text,
            image_rows=image_rows,
            merge=merge,
            dropout=dropout,
            scaling=scaling,
        )
    if backend is None:  # nothing but images, each of which is its own value
        return self_values(value, query), None
    sdpa, layer = Sdpa(dropout, scaling), 0 if module is None else module.layer_idx
    # A batch without an image has no second branch, and the first is the softmax over all keys.
    if merge == "sum" and attention_plan.has_images and attention_plan.has_text:
        out = backend.sum(sdpa, query, key, value, layer)
        if image_rows == "causal":
            out = torch.where(non_text, backend.joint(sdpa, query, key, value, layer), out)
    elif image_rows == "causal":
        out = backend.joint(sdpa, query, key, value, layer)
    else:
        out = backend.text_joint(sdpa, query, key, value, layer)
    return out, None


for _name, _switches in SWITCHES.items():
    AttentionInterface.register(_name, partial(attend, **_switches))
