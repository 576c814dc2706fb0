"""torch.compile of the decoder's layers: norms, rotary positions, MLP and residuals of a layer become a few kernels.

Each layer is compiled in place, so that modules, parameters and checkpoints keep their names. Layers of one class share
what was compiled. The attention stays outside of the graphs (`model/attention.attend`): its calls depend on where the
images lie. Not for ZeRO 3: its hooks gather the weights of each module when it runs and end graphs there, and ranks
that compile at different moments were seen to wait for each other forever.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch._inductor import config as inductor
from transformers.modeling_layers import GradientCheckpointingLayer

from model.modeling import VisualChatForConditionalGeneration
from scripts.common.errors import UserError
from scripts.training.checkpointed_layers import repeated_layers

_COMPILER = ("torch._dynamo.", "torch._inductor.", "triton.")


def compile_layers(
    model: VisualChatForConditionalGeneration,
    deterministic: bool,
    backend: str | Callable[..., Callable] = "inductor",
) -> None:
    """Let every layer of the decoder be compiled, at its first forward, with a backend of torch.compile.

    `deterministic`: kernels are chosen without timing them, so that another process computes the same bits.

    Raises:
        UserError: no layers of the decoder are recognised.
    """
    inductor.deterministic = deterministic
    layers = repeated_layers(model.get_decoder())
    if not layers:
        raise UserError(
            f"compile: true is not possible with {type(model.get_decoder()).__name__}, in which no layers are "
            "recognised; set it to false"
        )
    classes: dict[type[GradientCheckpointingLayer], type[GradientCheckpointingLayer]] = {}
    for layer in layers:
        kind = type(layer)
        if kind not in classes:
            classes[kind] = _compiled_class(kind, backend)
        layer.__class__ = classes[kind]


def compiler_hint(error: BaseException) -> str | None:
    """What to do about an error of the compiler; None if `error` is another."""
    if not f"{type(error).__module__}.".startswith(_COMPILER):
        return None
    # The second line is the cause, where there is one.
    reason = " ".join(str(error).split("\n")[:2]).strip()
    return (
        f"torch.compile failed on the decoder's layers ({type(error).__name__}: {reason}). Set `compile: false` for "
        "this run: it computes the same to rounding, and starts anew, because the setting is part of its results"
    )


def _compiled_class(
    kind: type[GradientCheckpointingLayer], backend: str | Callable[..., Callable]
) -> type[GradientCheckpointingLayer]:
    """A class like `kind` whose forward is compiled.

    `transformers` puts gradient checkpointing around the forward of each class. Compiling what it has put there would
    compile nothing in a layer that is checkpointed, because a graph cannot end within a checkpoint.
    """
    compiled = torch.compile(inspect.unwrap(kind.forward), backend=backend)

    def forward(self: GradientCheckpointingLayer, *args: Any, **kwargs: Any) -> Any:
        return compiled(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
