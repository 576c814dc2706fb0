"""The fingerprint of a training run: a hash of everything that decides its numbers, and of nothing else.

Settings that only decide how the work is divided do not count, nor does the code: a run that was interrupted continues
after an update. The model counts by its manifest, which holds the hashes of its files; a blend by its plan and the
hash of its conversations, which does not depend on how its images are stored nor on the number of its shards. A run
that starts from another one counts by the hash of the weights that it begins with, not by the other's name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.common.files import canonical_json, read_json, text_sha256
from scripts.config.run import RunConfig
from scripts.training.start import Start


def input_hashes(model: Path, blend: Sequence[Path], heldout: Path, start: Start | None = None) -> dict[str, Any]:
    """The hashes of the manifests that a run reads, and of the weights of other runs that it begins with.

    Raises:
        UserError: a manifest is missing.
    """
    inputs = {
        "model": manifest_sha256(model),
        "blend": [blend_sha256(folder) for folder in blend],
        "heldout": blend_sha256(heldout),
    }
    # Runs that start from no other one keep the fingerprints that they had before this key existed.
    return inputs if start is None else inputs | {"start": start.sha256}


def run_fingerprint(settings: RunConfig, inputs: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name the folder of the run's state; `inputs` are those of `input_hashes`."""
    return text_sha256(canonical_json({"v": 1, "settings": settings.numbers(), "inputs": inputs}))[:16]


def blend_sha256(folder: Path) -> str:
    """Hash of the conversations of a blend folder and their order."""
    manifest = read_json(folder / "manifest.json")
    return text_sha256(
        canonical_json([manifest[name] for name in ("plan", "content", "tokens_identity", "global_batch")])
    )


def manifest_sha256(folder: Path) -> str:
    """Hash of a folder's manifest as a value: how it is indented does not count."""
    return text_sha256(canonical_json(read_json(folder / "manifest.json")))
