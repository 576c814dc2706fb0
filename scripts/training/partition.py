"""Divides a model among the ranks weight by weight, for ZeRO 3: no rank ever holds it whole, in GPU or host memory.

Weights are read from safetensors by mapping the file, so those of a base that is stored in the dtype of its file are
pages that all ranks of a machine share and that it may drop. Converting a base while it is loaded would give every rank
a copy of its own: 140 GB times eight for a decoder of 70 billion. So it is converted here, where each weight is
divided among the ranks right away.
"""

from typing import Any

import deepspeed
import torch
from torch import nn


def partition(model: nn.Module, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    """Leave each rank its share of every parameter, in `dtype`, as DeepSpeed's `config` asks; buffers move to `device`.

    Collective; the values are those of rank 0. `deepspeed.initialize` takes the model as it then is.
    """
    first: Any = None
    for parameter in model.parameters():
        # Always a copy: what rank 0 sends is written into it, and written pages of a mapped file stay in memory.
        parameter.data = parameter.data.to(device, dtype, copy=True)
        if first is None:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=config, dtype=dtype)
            first = parameter
        else:
            first.convert_to_zero_parameters(param_list=[parameter])
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
