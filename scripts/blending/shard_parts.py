"""File names below the folder of a blend's part: its manifest, its shards, and the descriptions of the shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.blending.planning import HELDOUT

MANIFEST = "manifest.json"


def part_path(out: Path, shard: str) -> Path:
    """The file that describes what `shard` holds."""
    return out / "parts" / Path(shard).with_suffix(".json").name


def shard_stem(plan_manifest: Mapping[str, Any]) -> str:
    """The beginning of the names of a part's shards."""
    return HELDOUT if plan_manifest["epoch"] == HELDOUT else "train"
