"""Trained weights and low-rank adapters: put into a model, beside its layers or merged into their weights."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scripts.common.errors import UserError
from scripts.inference.quantization import is_quantized, linear_layers

_A, _B = ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(part: nn.Module, rank: int, scale: float, dropout: float, dtype: torch.dtype) -> None:
    """Put an adapter beside every linear layer of `part`, quantised or not, in place; only the adapters are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = linear_layers(part)
    if any(is_quantized(layer) for layer in layers.values()):
        part.is_loaded_in_4bit = True  # type: ignore[assignment]  # where peft looks for it
    config = LoraConfig(r=rank, lora_alpha=scale * rank, lora_dropout=dropout, target_modules=list(layers))
    inject_adapter_in_model(config, part)
    for name, value in part.named_parameters():
        value.requires_grad_("lora_" in name)
        if "lora_" in name:
            value.data = value.data.to(dtype)


def load_adapters(
    model: PreTrainedModel, weights: dict[str, Tensor], scale: float, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Put the decoder's adapters among `weights` (fp32, by parameter name) beside its layers; return the other weights.

    Raises:
        UserError: they are not those of this decoder.
    """
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder) + "."
    own = {name: value for name, value in weights.items() if name.startswith(prefix) and merge_target(name) != name}
    if own:
        rank = next(len(value) for name, value in own.items() if name.endswith(_A))
        add_adapters(decoder, rank, scale, 0.0, dtype)
        _copy(dict(model.named_parameters()), own.items())
    return {name: value for name, value in weights.items() if name not in own}


def merge_weights(model: nn.Module, weights: dict[str, Tensor], scale: float, dtype: torch.dtype | None = None) -> None:
    """Put trained weights (fp32, by parameter name) into a model without adapters, merging adapters among them.

    Merging is done in double precision and rounded once to the precision of the model's own weight; or to `dtype`,
    which the weights that are put in then have, as if the model had been loaded in it. `scale` is that of all adapters.

    Raises:
        UserError: the model has no parameter of a name, or one of another shape.
    """
    parameters = dict(model.named_parameters())
    if dtype is not None:
        for name in {merge_target(name) for name in weights} & parameters.keys():
            parameters[name].data = parameters[name].data.to(dtype)
    _copy(parameters, _merged(parameters, weights, scale))


def _copy(parameters: dict[str, nn.Parameter], weights: Iterable[tuple[str, Tensor]]) -> None:
    for name, value in weights:
        if name not in parameters or parameters[name].shape != value.shape:
            expected = tuple(parameters[name].shape) if name in parameters else "absent"
            raise UserError(
                f"the trained weights do not fit the model: {name} is {tuple(value.shape)} in the weights and "
                f"{expected} in the model"
            )
        with torch.no_grad():
            parameters[name].copy_(value)


def merge_target(name: str) -> str:
    """The parameter that a trained weight changes: that beside an adapter, otherwise the weight's own."""
    for suffix in (_A, _B):
        if name.endswith(suffix):
            return name.removesuffix(suffix) + ".weight"
    return name


def _merged(
    parameters: dict[str, nn.Parameter], weights: dict[str, Tensor], scale: float
) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        if name.endswith(_A):
            target = merge_target(name)
            update = weights[name.removesuffix(_A) + _B].double() @ value.double()
            base = parameters.get(target)
            yield target, update if base is None else base.detach().double() + scale * update.to(base.device)
        elif not name.endswith(_B):
            yield name, value
