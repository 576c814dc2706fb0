"""The files of trained weights below a run's state: those with the least held-out loss, and those at the end.

    state/<fingerprint>/weights/step-00000200.safetensors

They hold the weights alone, in fp32 and by name; a checkpoint also holds the optimizer's state (`checkpoints.py`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from scripts.common.files import file_sha256
from scripts.common.tensors import write_tensors


class WeightsFile(TypedDict):
    """A file of trained weights: its path below the run's state, and its sha256 ("" on other ranks than 0)."""

    weights: str
    sha256: str


class BestWeights(WeightsFile):
    """The weights with the least held-out loss so far, and the finished steps behind them."""

    step: int
    heldout_loss: float


class WeightsFiles:
    """The files of one run. Only one process may write."""

    def __init__(self, state: Path) -> None:
        """`state`: the folder of the run's state."""
        self._state = state

    def unwritten(self, step: int) -> WeightsFile:
        """The entry of a rank that does not write the file."""
        return {"weights": f"weights/step-{step:08d}.safetensors", "sha256": ""}

    def write(self, step: int, weights: dict[str, Tensor]) -> WeightsFile:
        """Write the weights after `step` finished steps, atomically."""
        path = self.unwritten(step)["weights"]
        write_tensors(self._state / path, weights)
        return {"weights": path, "sha256": file_sha256(self._state / path)}

    def prune(self, keep: Iterable[str]) -> None:
        """Remove all files but those of `keep`, paths below the run's state."""
        kept = {Path(path).name for path in keep}
        for path in (self._state / "weights").glob("*"):
            if path.name not in kept:
                path.unlink()
