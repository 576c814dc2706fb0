"""Writes named tensors as safetensors files, whole or not at all."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from scripts.common.files import atomic


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically; without metadata, whose order in the file is not fixed."""
    with atomic(path) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}))
