"""Fused kernels of Liger Kernel (arXiv 2410.10989) for norms, rotary positions and SwiGLU of a Llama-like decoder.

The decoder keeps its modules and parameters; only what computes them changes, in this process. So checkpoints and
exports are as without. The loss is not Liger's: ours is computed where labels are (`model/modeling.py`).

The library replaces the function of rotary positions for all decoders of the type in the process; a rank has one.
"""

import importlib.util
import inspect
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from scripts.common.errors import UserError
from scripts.config.run import RunConfig

# The options of the library's functions that replace what this module names.
_PARTS = ("rope", "rms_norm", "swiglu")
_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def check_fused_layers(settings: RunConfig) -> None:
    """Raise UserError if the kernels that a run asks for cannot be used on this machine."""
    if settings.fused_layers == "none":
        return
    way_out = "or set `fused_layers: none` for this run"
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(f"`fused_layers: liger` needs Liger Kernel: run `pip install liger-kernel`, {way_out}")
    if not torch.cuda.is_available():
        raise UserError(f"`fused_layers: liger` needs a GPU, and there is none: train on one, {way_out}")


def fuse_layers(language_model: PreTrainedModel) -> None:
    """Let the decoder compute norms, rotary positions and SwiGLU by Liger's kernels.

    Raises:
        UserError: the library has no kernels for this type of decoder, or its MLP is no SwiGLU.
    """
    config = language_model.config
    functions = _patching_functions()
    if config.model_type not in functions:
        raise UserError(
            f"`fused_layers: liger` does not support a decoder of type {config.model_type!r}, but "
            f"{', '.join(sorted(functions))}; set `fused_layers: none` for this run"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise UserError(
            f"`fused_layers: liger` computes an MLP with silu, but this decoder's hidden_act is {config.hidden_act}; "
            "set `fused_layers: none` for this run"
        )
    functions[config.model_type](model=language_model, **dict.fromkeys(_PARTS, True), **dict.fromkeys(_LOSSES, False))


def _patching_functions() -> dict[str, Callable[..., None]]:
    """The library's functions for decoders that have all three parts, by type of decoder."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return {
        kind: function
        for kind, function in MODEL_TYPE_TO_APPLY_LIGER_FN.items()
        if {*_PARTS, *_LOSSES} <= inspect.signature(function).parameters.keys()
    }
