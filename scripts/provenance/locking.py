"""Builds the lock file of a run: all input and output files, and the code that made them, with their hashes."""

import importlib.metadata
from pathlib import Path
from typing import Any

from scripts.common.files import canonical_json, read_json, text_sha256
from scripts.common.fingerprint import ROOT, code_files
from scripts.evaluation.forgetting_summary import FILE as FORGETTING
from scripts.evaluation.forgetting_summary import drift_of
from scripts.provenance.manifest_files import manifest_files, raw_listings

ENVIRONMENT = "environment"
_PINS = ("envs/requirements.txt", "envs/requirements-torch.txt")


def build_lock(root: Path, run: str, manifests: list[str], programs: list[str]) -> dict[str, Any]:
    """The lock file of `run` as JSON (docs/report.md describes its keys).

    Args:
        root: the results root.
        run: name of the run; its files are in `train/<run>`.
        manifests: paths, relative to `root`, of the manifests of every step that the run depends on.
        programs: dotted names of the modules that were run.

    Raises:
        UserError: the run is not finished, or a file is missing.
    """
    finished = read_json(root / "train" / run / "finished.json")
    state = root / "train" / run / finished["state"]
    files = {file.path: file for manifest in manifests for file in manifest_files(root, manifest)}
    compared = f"evaluate/{run}/{FORGETTING}"
    drift = {"drift": drift_of(read_json(root / compared))} if compared in manifests else {}
    value = {
        "v": 1,
        "run": run,
        "fingerprint": finished["fingerprint"],
        "settings": read_json(state / "settings.json"),
        "inputs": read_json(state / "inputs.json"),
        "files": {path: {"bytes": file.bytes, "sha256": file.sha256} for path, file in files.items()},
        "listings": {path: below for manifest in manifests for path, below in raw_listings(root, manifest).items()},
        "programs": sorted(programs),
        "code": code_files(*programs),
    }
    value |= drift
    return value | {"sha256": lock_sha256(value), ENVIRONMENT: environment(state)}


def lock_sha256(value: dict[str, Any]) -> str:
    """The sha256 of a lock file without its keys `environment` and `sha256`."""
    return text_sha256(
        canonical_json({key: entry for key, entry in value.items() if key not in (ENVIRONMENT, "sha256")})
    )


def environment(state: Path) -> dict[str, Any]:
    """The environment in which the run was trained, from its state, and the versions of all pinned libraries now."""
    return {"training": read_json(state / "environment.json"), "libraries": libraries()}


def libraries() -> dict[str, str]:
    """The installed versions of the pinned libraries, by name; one that is not installed is left out."""
    versions: dict[str, str] = {}
    for line in "\n".join((ROOT / path).read_text(encoding="utf-8") for path in _PINS).splitlines():
        name = line.split("#")[0].split("==")[0].strip()
        try:
            versions |= {name: importlib.metadata.version(name)} if name else {}
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
