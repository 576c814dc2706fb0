"""How a language model gets the attention of this package, and how an unsupported one is detected.

`install_attention` is permanent: the decoder's attention modules read the name of this attention from their
configuration, whatever `attn_implementation` is. That option keeps deciding how, not what is computed: 'eager' by the
formula, with attention weights; everything else by the back-ends of attention_plan.py.

A decoder must take its attention from the AttentionInterface of `transformers`, in every layer, once, and require
nothing that `attend` does not support. Three checks, from cheap to certain:

    check_decoder_supported   its configuration: sliding windows, soft caps, scaled logits, ...
    dry_run_decoder           a forward on the meta device, which costs neither memory nor arithmetic
    check_attention_calls     the number of calls, after every forward

So no decoder ever runs with its own attention by mistake. docs/model.md has a table of decoders that were tested.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel

from .attention_plan import SWITCHES, AttentionPlan
from .documents import IMAGE, TEXT

# Options that change attention scores or logits outside the functions that this model calls, and their neutral value.
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
    """A decoder's configuration as its attention modules see it: the same, except for the name of the attention."""

    def __init__(self, config: PreTrainedConfig, attention: str) -> None:
        self._config, self._attn_implementation = config, attention

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_config" not in self.__dict__:  # while it is copied
            raise AttributeError(name)
        return getattr(self._config, name)


def install_attention(language_model: PreTrainedModel, attention: str) -> None:
    """Make the decoder's attention modules call `attention`, a name of the AttentionInterface."""
    for module in language_model.get_decoder().modules():
        if isinstance(module.__dict__.get("config"), PreTrainedConfig) and not isinstance(module, PreTrainedModel):
            module.config = _View(module.config, attention)


def placeholder_mask(embeds: Tensor) -> Tensor:
    """The attention mask (1, 1, 1, 1) to pass to a decoder whose attention is `attend`.

    Its four dimensions make `transformers` take it for a complete mask and build none; `attend` recognises it by its
    single element.
    """
    return embeds.new_zeros(1, 1, 1, 1)


def check_decoder_supported(config: PreTrainedConfig) -> None:
    """Raise ValueError, with the reason, for a decoder that needs something which this model would leave out."""
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    reasons = [f"layers of {layer_type}" for layer_type in sorted(layer_types)]
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


def dry_run_decoder(language_model: PreTrainedModel, attention: str) -> None:
    """Run one text and one image token through the decoder on the meta device.

    Raises ValueError if it does not call `attention` once per layer, or passes it something that is not supported.
    A decoder that cannot run there (its control flow depends on values) is checked at its first real forward.
    """
    decoder, device = language_model.get_decoder(), torch.device("meta")
    with torch.device("cpu"):  # `transformers` builds models with "meta" as the default device
        attention_plan = AttentionPlan.build(torch.tensor([[IMAGE, TEXT]]), **SWITCHES[attention]).to(device)
    tensors = {name: x.to(device) for name, x in (*decoder.named_parameters(), *decoder.named_buffers())}
    embeds = torch.zeros(1, 2, decoder.config.hidden_size, dtype=language_model.dtype, device=device)
    inputs = {
        "inputs_embeds": embeds,
        "attention_mask": placeholder_mask(embeds),
        "position_ids": torch.tensor([[0, 1]], device=device),
        "use_cache": False,
        "attention_plan": attention_plan,
    }
    training = decoder.training
    decoder.eval()  # a forward in training mode may change buffers or checkpoint gradients
    try:
        with torch.no_grad():
            functional_call(decoder, tensors, kwargs=inputs, strict=False)
    except Exception as error:
        # A failure for lack of values decides nothing: `check_attention_calls` does, at the first real forward.
        if isinstance(error, NotImplementedError | RuntimeError) and (attention_plan.calls or "meta" in str(error)):
            return
        raise ValueError(f"{type(language_model).__name__} cannot run with this attention: {error}") from error
    finally:
        decoder.train(training)
    check_attention_calls(language_model, attention, attention_plan)


@torch.compiler.disable
def check_attention_calls(language_model: PreTrainedModel, attention: str, attention_plan: AttentionPlan) -> None:
    """Raise ValueError unless every layer of the decoder called the attention once with this plan."""
    layers = language_model.config.num_hidden_layers
    if attention_plan.calls != layers:
        raise ValueError(
            f"{type(language_model).__name__} called the attention {attention!r} {attention_plan.calls} times in "
            f"{layers} layers; use a decoder of full attention layers that takes its attention from AttentionInterface"
        )
