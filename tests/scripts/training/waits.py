"""Finds what would make the CPU wait for a GPU: operations whose result, or its size, must be read on the CPU.

`torch.cuda.set_sync_debug_mode` reports these on a GPU. Here they are recognised by their names, wherever they run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = {
    "aten._local_scalar_dense",  # item(), float(), int(), bool()
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_scatter_backward",
    "aten.masked_select",
    "aten.nonzero",
    "aten.unique_consecutive",
    "aten.unique_dim",
    "aten._unique2",
}


def _refused(self: torch.Tensor) -> Any:
    raise AssertionError("tolist waits for the device")


class RefuseWaits(TorchDispatchMode):
    """Raise AssertionError where an operation inside would wait for a GPU, until `allow` is called."""

    def __enter__(self) -> RefuseWaits:
        self._refuses = True
        self._tolist = torch.Tensor.tolist
        torch.Tensor.tolist = _refused  # it does not go through the dispatcher
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch.Tensor.tolist = self._tolist
        super().__exit__(*error)

    def allow(self) -> None:
        """From here on operations may wait."""
        self._refuses = False
        torch.Tensor.tolist = self._tolist

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._refuses:
            return func(*args, **(kwargs or {}))
        name = f"{func.namespace}.{func._schema.name.partition('::')[2]}"
        assert name not in _WAITS, f"{name} waits for the device"
        if name in ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            assert all(index.dtype not in (torch.bool, torch.uint8) for index in indices), f"{name} by a mask waits"
        if name == "aten.repeat_interleave":
            assert kwargs and kwargs.get("output_size") is not None, f"{name} without a size waits"
        return func(*args, **(kwargs or {}))
