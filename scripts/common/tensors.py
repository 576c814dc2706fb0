"""Writing named tensors as safetensors files, atomically."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from scripts.common.files import atomic, sync


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically; without metadata, whose order in the file is not deterministic.

    Its directory is synced too, so a checkpoint that names the file may replace all earlier ones.
    """
    with atomic(path) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}))
    sync(path.parent)
