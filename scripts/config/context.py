"""How many positions a decoder reads, by the fields of its `config.json`: without torch and transformers."""

from collections.abc import Mapping
from typing import Any

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx")
_EXTENDED_BY_FACTOR = ("linear", "dynamic", "yarn")


def context_length(fields: Mapping[str, Any]) -> int | None:
    """The longest sequence that a decoder reads, in tokens; None if it has no limit.

    Scaled rotary positions count: `linear` and `dynamic` by their factor, `yarn` by its factor of the original length.
    The others (`llama3`, `longrope`) are in `max_position_embeddings` already.
    """
    positions = next((fields[name] for name in _NAMES if isinstance(fields.get(name), int)), None)
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if positions is None or not isinstance(scaling, Mapping):
        return positions
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor") or 1.0
    if kind not in _EXTENDED_BY_FACTOR:
        return positions
    original = scaling.get("original_max_position_embeddings") or positions
    return max(positions, int(factor * (original if kind == "yarn" else positions)))
