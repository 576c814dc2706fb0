"""Where the shards of a blend and what they hold are found."""

from pathlib import Path
from typing import Any

from scripts.blending.planning import HELDOUT

MANIFEST = "manifest.json"


def part_path(out: Path, shard: str) -> Path:
    """Where it is told what `shard` holds."""
    return out / "parts" / Path(shard).with_suffix(".json").name


def stem_of(planned: dict[str, Any]) -> str:
    """What the names of a part's shards begin with."""
    return HELDOUT if planned["epoch"] == HELDOUT else "train"
