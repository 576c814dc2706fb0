"""What a training run is: a fingerprint of everything that decides its numbers, and of nothing else.

Settings that only say how the work is divided do not count, nor does the code: a run that was interrupted continues
after an update. The model counts by its manifest, which holds the hashes of what it describes; a blend by its plan and
by what its conversations hold, whether its images are embedded or referred to and however many shards there are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.common.files import canonical_json, read_json, text_sha256
from scripts.config.run import RunConfig


def input_hashes(model: Path, blend: Sequence[Path], heldout: Path) -> dict[str, Any]:
    """The hashes of the manifests that a run reads.

    Raises:
        UserError: a manifest is missing.
    """
    return {
        "model": manifest_sha256(model),
        "blend": [blend_sha256(folder) for folder in blend],
        "heldout": blend_sha256(heldout),
    }


def run_fingerprint(settings: RunConfig, read: dict[str, Any]) -> str:
    """Sixteen hex digits that name the run's state."""
    return text_sha256(canonical_json({"v": 1, "settings": settings.numbers(), "inputs": read}))[:16]


def blend_sha256(folder: Path) -> str:
    """Hash of what is trained on and in which order."""
    manifest = read_json(folder / "manifest.json")
    return text_sha256(
        canonical_json([manifest[name] for name in ("plan", "content", "tokens_identity", "global_batch")])
    )


def manifest_sha256(folder: Path) -> str:
    """Hash of a folder's manifest as a value: how it is indented does not count."""
    return text_sha256(canonical_json(read_json(folder / "manifest.json")))
