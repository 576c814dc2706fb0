"""Applies a function to every tensor of a nested structure: to move it to a device, or into page-locked memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` applied to all its tensors; it may be a tensor, list, dict or dataclass, or hold such.

    Fields of dataclasses whose name begins with an underscore are left as they are.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [map_tensors(item, function) for item in value]
    if isinstance(value, dict):
        return {name: map_tensors(item, function) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in fields(value) if not item.name.startswith("_")]
        return replace(value, **{name: map_tensors(getattr(value, name), function) for name in names})
    return value
