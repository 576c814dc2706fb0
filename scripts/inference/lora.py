"""Merges trained weights into a model: plain ones as they are, low-rank adapters as the update that they represent."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from scripts.common.errors import UserError

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def merge_weights(model: nn.Module, weights: dict[str, Tensor], scale: float) -> None:
    """Put trained weights (fp32, by parameter name) into a model without adapters, merging adapters among them.

    Merging is done in double precision and rounded once to the precision of the model's own weight. `scale` is that of
    all adapters.

    Raises:
        UserError: the model has no parameter of a name, or one of another shape.
    """
    parameters = dict(model.named_parameters())
    for name, value in _merged(parameters, weights, scale):
        if name not in parameters or parameters[name].shape != value.shape:
            expected = tuple(parameters[name].shape) if name in parameters else "absent"
            raise UserError(
                f"the trained weights do not fit the model: {name} is {tuple(value.shape)} in the weights and "
                f"{expected} in the model"
            )
        with torch.no_grad():
            parameters[name].copy_(value)


def _merged(
    parameters: dict[str, nn.Parameter], weights: dict[str, Tensor], scale: float
) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        if name.endswith(_A):
            target = name.removesuffix(_A) + ".weight"
            update = weights[name.removesuffix(_A) + _B].double() @ value.double()
            base = parameters.get(target)
            yield target, update if base is None else base.detach().double() + scale * update.to(base.device)
        elif not name.endswith(_B):
            yield name, value
