"""Attention over text and images in two branches: MMCA, causal and D-Attn as one registered function with two switches.

For a text token with query q, keys and values of the text up to itself (t) and of the images before it (i), MMCA
(multi-modal causal attention, arXiv 2309.14327, figure 4) is

    out = softmax(q K_t^T * scaling) V_t  +  softmax(q K_i^T * scaling) V_i

where the second term is 0 if no image lies before. An image token attends to itself alone, so that its row is its own
value. The switches:

    image_rows   'self'    an image row is its own value
                 'causal'  an image row attends to everything before it
    merge        'sum'     the two branches are normalised apart and added
                 'lse'     the two are merged by log-sum-exp, which is one softmax over the keys of both

    name      image_rows   merge
    mmca      self         sum
    causal    causal       lse       ordinary causal attention
    dattn     self         lse       D-Attn, arXiv 2502.01906

Importing this module registers the names in the AttentionInterface of `transformers` and, on purpose, not in its
AttentionMaskInterface: so the library builds no mask. How it is computed is the layout's plan (attention_plan.py); how a
decoder gets it, decoders.py.

Shapes: B batch, H heads, G key-value heads, D head width, T tokens of this forward, K tokens including the cache.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import AttentionInterface

from .attention_plan import SWITCHES, AttentionPlan
from .documents import self_values
from .masks import attend_with_weights
from .sdpa import Sdpa

# What some decoders ask of their attention function and this one does not compute: a wrong answer if it were ignored.
_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "sinks", "position_bias", "head_mask")


def attend(
    module: torch.nn.Module | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    image_rows: str,
    merge: str,
    scaling: float | None = None,
    dropout: float = 0.0,
    attention_plan: AttentionPlan | None = None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Attention function in the form that `transformers` calls.

    `query` (B, H, T, D); `key` and `value` (B, G, K, D), the cache included, with H a multiple of G. Returns
    (B, T, H, D), whose rows of padding are without meaning, and the weights (B, H, T, K) if the layout wants them.
    Raises ValueError without a layout, or if the decoder asks for something that is not computed here.
    """
    if attention_plan is None:
        raise ValueError(
            "this attention needs to know where text and images lie: call VisualChatForConditionalGeneration, "
            "not its language model alone"
        )
    if attention_plan.key_length != key.shape[2]:
        raise ValueError(
            f"the attention got {key.shape[2]} keys, but the modality of {attention_plan.key_length} tokens; "
            "only a DynamicCache that this model filled can be continued"
        )
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"the decoder asks its attention for {name!r}, which is not computed here")
    if attention_mask is not None and attention_mask.numel() > 1:
        raise ValueError("the decoder brings an attention mask of its own, which would be left out here")
    attention_plan.record_call()

    if attention_plan.masks is not None:
        switches = {"image_rows": image_rows, "merge": merge, "dropout": dropout, "scaling": scaling}
        return attend_with_weights(query, key, value, attention_plan.masks, attention_plan.own, **switches)
    if attention_plan.backend is None:  # nothing but images, each of which is its own value
        return self_values(value, query), None
    inputs = (Sdpa(dropout, scaling), query, key, value, 0 if module is None else module.layer_idx)
    # A batch without an image has no second branch, and the first is the softmax over all keys.
    if merge == "sum" and attention_plan.has_images and attention_plan.has_text:
        out = attention_plan.backend.sum(*inputs)
        if image_rows == "causal":
            return torch.where(attention_plan.own, attention_plan.backend.joint(*inputs), out), None
    elif image_rows == "causal":
        return attention_plan.backend.joint(*inputs), None
    else:
        out = attention_plan.backend.text_joint(*inputs)
    return out, None


for _name, _switches in SWITCHES.items():
    AttentionInterface.register(_name, partial(attend, **_switches))
