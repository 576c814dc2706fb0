"""Language models in 4 or 8 bits (bitsandbytes): the same layers in training, chat and server.

Quantised are the weights of the decoder's linear layers. Encoder, projector, embeddings, norms and output head keep
their number format: the first two are small or trained, the others decide single tokens and are read row by row.

4 bits are NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3): 64 weights share a scale and each is one
of 16 levels that are equally likely for normally distributed weights; the scales are kept in 8 bits, 256 of them with
one fp32 scale. A layer computes with its weights rounded to these levels, in the format of its input. Nothing in this
is random: the same weights become the same bytes in every process.

bitsandbytes is optional (`envs/requirements-gpu.txt`). It runs on GPUs and, slower, on CPUs.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from scripts.common.errors import UserError

NF4 = "nf4"
BYTES_PER_NF4_WEIGHT = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""A weight of 4 bits, its share of the scale of 64 weights (one byte), and of the scale of 256 scales (fp32)."""


def check_bitsandbytes(setting: str, way_out: str) -> None:
    """Raise UserError if bitsandbytes, which `setting` needs, is not installed; `way_out`: what to do without it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{setting} needs bitsandbytes: run `pip install bitsandbytes`, or {way_out}")


def n_weights(parameter: torch.Tensor) -> int:
    """How many weights a parameter holds: its numbers, or those that were packed into it."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def linear_layers(decoder: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a decoder by name, quantised or not, without adapters; these are what is quantised.

    Not subclasses of PyTorch's layer: some read the weight of their last layer directly.
    """
    return {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and (type(module) is nn.Linear or is_quantized(module)) and "lora_" not in name
    }


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a linear layer of bitsandbytes with a weight of 4 bits."""
    # An adapter shows the weight of the layer that it lies beside as its own.
    library = type(module).__module__.split(".")[0] == "bitsandbytes"
    return library and getattr(module.weight, "quant_state", None) is not None


def n_quantizable(decoder: nn.Module) -> int:
    """How many of a decoder's weights `quantize: nf4` keeps in 4 bits."""
    return sum(n_weights(layer.weight) for layer in linear_layers(decoder).values())


def quantize_decoder(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    """Keep the decoder of `model` in 4 bits, to compute in `dtype`, and bring the whole model to `device`.

    A layer is read, quantised and replaced after the other. So of a decoder whose weights are mapped files (loaded with
    `keep_language_dtype`) no more than one layer is in memory whole.

    Raises:
        UserError: most of its weights lie outside of linear layers, so that little would be quantised.
    """
    decoder = model.get_decoder()
    _check_share(decoder)
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, layer in linear_layers(decoder).items():
        bias = layer.bias is not None
        packed = Linear4bit(layer.in_features, layer.out_features, bias, dtype, True, NF4, device="meta")
        whole = layer.weight.data.to(device, dtype)
        packed.weight = Params4bit(whole, compress_statistics=True, quant_type=NF4, module=packed).to(device)
        if bias:
            packed.bias = nn.Parameter(layer.bias.data.to(device, dtype), requires_grad=False)
        # On CPUs with bf16 instructions bitsandbytes would rearrange the weights in the first forward pass without
        # gradient, such as an evaluation, and could not train with them afterwards.
        packed.support_avx512bf16_for_cpu = False
        decoder.set_submodule(name, packed.train(layer.training))
    for value in model.parameters():
        if value.is_floating_point():
            value.data = value.data.to(dtype)
    model.to(device)


def exported_config(folder: Path, bits: int) -> BitsAndBytesConfig:
    """How `from_pretrained` loads the exported model in `folder` in `bits` bits (4 or 8), to compute in its own format.

    In 4 bits it becomes what `quantize_decoder` makes of it.

    Raises:
        UserError: as `quantize_decoder`.
    """
    from model.configuration import VisualChatConfig
    from model.modeling import VisualChatForConditionalGeneration

    config = VisualChatConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = VisualChatForConditionalGeneration(config)
    _check_share(model.get_decoder())
    inside = {id(module) for module in model.get_decoder().modules()}
    kept = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) not in inside
    ]
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=config.dtype,
        llm_int8_skip_modules=kept,
    )


def _check_share(decoder: nn.Module) -> None:
    """Raise UserError if most of a decoder's weights lie outside of linear layers and tables."""
    tables = {id(module.weight) for module in decoder.modules() if isinstance(module, nn.Embedding)}
    others = sum(value.numel() for value in decoder.parameters() if id(value) not in tables)
    share = n_quantizable(decoder) / others
    if share < 0.5:
        raise UserError(
            f"only {share:.0%} of the weights of {type(decoder).__name__} lie in linear layers, which are what is "
            "quantised (the experts of a mixture often do not); load it without quantisation"
        )
