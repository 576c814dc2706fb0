"""Named tensors in safetensors files: written atomically, and read with an error that names the file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from scripts.common.errors import damaged
from scripts.common.files import atomic, sync


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically; without metadata, whose order in the file is not deterministic.

    Its directory is synced too, so a checkpoint that names the file may replace all earlier ones.
    """
    with atomic(path) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}))
    sync(path.parent)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        UserError: it is missing, cut off or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    except SafetensorError as error:
        raise damaged(path, f"is damaged or no safetensors file ({error})") from None
