"""How a language model gets the attention of this package, which ones can take it, and how one that cannot is told.

`install_attention` gives it to a decoder for good: its attention modules read another name from their configuration, whatever
`attn_implementation` says. That goes on to mean how, not what is computed: 'eager' by the formula, with weights to look
at, everything else by the plans of attention_plan.py.

A decoder must take its attention from the AttentionInterface of `transformers`, in every layer, once, and ask of it
nothing that `attend` does not compute. Three checks, from cheap to sure:

    check_decoder_supported   by its configuration: sliding windows, soft caps, scaled logits, ...
    dry_run_decoder                 by a forward on the meta device, which costs neither memory nor arithmetic
    check_attention_calls              by counting, after every forward

So none is ever used with its own attention by mistake. A table of decoders that were tested is in docs/model.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel

from .attention_plan import SWITCHES, AttentionPlan
from .documents import IMAGE, TEXT

# What changes attention scores or logits outside the functions that this model calls, and its value without effect.
_NEUTRAL = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "lm_head_multiplier": 1.0,
    "attention_chunk_size": None,
    "alibi": False,
    "use_bidirectional_attention": False,
    "reorder_and_upcast_attn": False,
    "is_encoder_decoder": False,
}


class _View:
    """A decoder's configuration as its attention modules see it: the same, but for the name of the attention."""

    def __init__(self, config: PreTrainedConfig, attention: str):
        self._config, self._attn_implementation = config, attention

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_config" not in self.__dict__:  # while it is copied
            raise AttributeError(name)
        return getattr(self._config, name)


def install_attention(language_model: nn.Module, attention: str) -> None:
    """Let the decoder's attention modules call `attention`, and none be built or used but by `placeholder_mask`."""
    for module in language_model.get_decoder().modules():
        if isinstance(module.__dict__.get("config"), PreTrainedConfig) and not isinstance(module, PreTrainedModel):
            module.config = _View(module.config, attention)


def placeholder_mask(embeds: Tensor) -> Tensor:
    """What to pass as a decoder's attention mask: of four dimensions, so that the library takes it for a finished one
    and builds none of its own, and of one element, by which `attend` knows it."""
    return embeds.new_zeros(1, 1, 1, 1)


def check_decoder_supported(config: PreTrainedConfig) -> None:
    """Raise ValueError, with the reason, for a decoder that computes something which this model would leave out."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    reasons = [f"layers of {kind}" for kind in sorted(kinds)]
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None) is not None:
        reasons.append(f"a sliding window of {config.sliding_window} tokens")
    for name, neutral in _NEUTRAL.items():
        if getattr(config, name, None) not in (None, neutral):
            reasons.append(f"{name} = {getattr(config, name)}")
    if reasons:
        raise ValueError(
            f"a {config.model_type!r} language model with {', '.join(reasons)} cannot be used: the attention and the "
            "head of this model would silently leave that out"
        )


def dry_run_decoder(language_model: nn.Module, attention: str) -> None:
    """Run one text and one image token through the decoder on the meta device.

    Raises ValueError if it does not call `attention` once per layer, or calls it with something it does not compute.
    A decoder that cannot run there (its control flow depends on values) is judged at its first real forward.
    """
    decoder, device = language_model.get_decoder(), torch.device("meta")
    with torch.device("cpu"):  # the library builds models where "meta" is the default device
        attention_plan = AttentionPlan.build(torch.tensor([[IMAGE, TEXT]]), **SWITCHES[attention]).to(device)
    tensors = {name: x.to(device) for name, x in (*decoder.named_parameters(), *decoder.named_buffers())}
    embeds = torch.zeros(1, 2, decoder.config.hidden_size, dtype=language_model.dtype, device=device)
    inputs = {"inputs_embeds": embeds, "position_ids": torch.tensor([[0, 1]], device=device), "use_cache": False}
    inputs["attention_mask"] = placeholder_mask(embeds)
    training = decoder.training
    decoder.eval()  # a forward in training mode may change buffers, and takes no part of gradient checkpointing here
    try:
        with torch.no_grad():
            functional_call(decoder, tensors, kwargs=inputs | {"attention_plan": attention_plan}, strict=False)
    except Exception as error:  # a decoder that knows nothing of this attention may fail in any way
        # What is for lack of values is no verdict: the first real forward gives it, with `check_attention_calls`.
        if isinstance(error, NotImplementedError | RuntimeError) and (attention_plan.calls or "meta" in str(error)):
            return
        raise ValueError(f"{type(language_model).__name__} cannot run with this attention: {error}") from error
    finally:
        decoder.train(training)
    check_attention_calls(language_model, attention, attention_plan)


@torch.compiler.disable
def check_attention_calls(language_model: nn.Module, attention: str, attention_plan: AttentionPlan) -> None:
    """Raise ValueError unless every layer of the decoder called the attention once with this layout."""
    layers = language_model.config.num_hidden_layers
    if attention_plan.calls != layers:
        raise ValueError(
            f"{type(language_model).__name__} called the attention {attention!r} {attention_plan.calls} times in {layers} "
            "layers; use a decoder of full attention layers that takes its attention from AttentionInterface"
        )
