"""Lists the files that belong to a manifest, with their sizes and hashes.

The lock file of a run is built from manifests. A manifest has the sha256 of the large files beside it, and these are
used, so that a root of a terabyte is not read again; small files that no manifest names are hashed here. Files that
contain times (logs, `metrics.jsonl`, TensorBoard) or are temporary (checkpoints, answer caches) are in no lock file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError, damaged
from scripts.common.files import file_sha256, read_json
from scripts.training.start import DESCRIPTION, FOLDER, start_files
from scripts.workflow.products import STATE_FILES

MINIATURE = "raw/miniature"


@dataclass(frozen=True)
class HashedFile:
    """A file below the results root: size in bytes and sha256 of its content."""

    path: str
    bytes: int
    sha256: str


def manifest_files(root: Path, manifest: str) -> list[HashedFile]:
    """The files that belong to `manifest` (a path relative to `root`), itself included, sorted by path.

    Raises:
        UserError: a file is missing, or no step writes such a manifest.
    """
    stage = manifest.split("/")[0]
    if stage not in _STAGES:
        raise UserError(f"{manifest} is not a manifest of a step: its folder is none of {', '.join(sorted(_STAGES))}")
    path = root / manifest
    # A file that is listed twice keeps its first known hash.
    hashes: dict[Path, str | None] = {}
    for file, sha256 in _STAGES[stage](path, read_json(path)):
        hashes[file] = hashes.get(file) or sha256
    return sorted((_file(root, file, sha256) for file, sha256 in hashes.items()), key=lambda file: file.path)


def raw_listings(root: Path, manifest: str) -> dict[str, str]:
    """The table of raw files of a source's manifest, with the folder below `root` that its paths are relative to.

    The folder is "" if the raw files are the user's and lie outside the root. Other manifests have no table.
    """
    if not (manifest.startswith("raw/") and manifest.endswith("/source.json")):
        return {}
    synthetic = read_json(root / manifest)["provided_by"] == "miniature" and (root / MINIATURE).is_dir()
    return {manifest.replace("source.json", "files.parquet"): MINIATURE if synthetic else ""}


def _file(root: Path, path: Path, sha256: str | None) -> HashedFile:
    if not path.is_file():
        raise damaged(path, "is missing", "its manifest exists")
    return HashedFile(path.relative_to(root).as_posix(), path.stat().st_size, sha256 or file_sha256(path))


Files = Iterator[tuple[Path, str | None]]
"""Paths with their sha256, `None` if no manifest has it."""


def _only_manifest(path: Path, manifest: Any) -> Files:
    yield path, None


def _raw(path: Path, manifest: dict[str, Any]) -> Files:
    yield path, None
    if path.name == "source.json":
        yield path.with_name("files.parquet"), None
        yield path.with_name("images.parquet"), None
    elif path.name == "miniature.json":
        # The synthetic datasets are listed by their sources; evaluation also reads these files.
        yield path.with_name("kinds.json"), None
        for folder in ("dialogues", "tasks"):
            yield from ((file, None) for file in sorted((path.parent / folder).rglob("*")) if file.is_file())


def _same_name(*suffixes: str) -> Callable[[Path, Any], Files]:
    """A manifest whose data files have the same name with other suffixes: `llava.json` and `llava.parquet`."""

    def files(path: Path, manifest: Any) -> Files:
        yield path, None
        stem, hashes = path.name.removesuffix(".json").removesuffix(".report"), manifest.get("files", {})
        for suffix in suffixes:
            yield path.with_name(f"{stem}{suffix}"), hashes.get(f"{stem}{suffix}")

    return files


def _split(path: Path, manifest: Any) -> Files:
    yield path, None
    yield path.with_name("heldout.parquet"), None


def _shards(path: Path, manifest: dict[str, Any]) -> Files:
    """Tar shards with their offsets, the partial tables of their writers, and the merged tables beside them."""
    yield path, None
    for shard in manifest["shards"]:
        tar = path.with_name(shard["name"])
        yield tar, shard["sha256"]
        yield tar.with_name(f"{tar.name}.idx"), shard.get("index_sha256")
        parts = sorted((path.parent / "parts").glob(f"{tar.stem}.*"))
        yield from ((part, None) for part in parts)
    for name in ("index.parquet", "rejected.parquet", "units.idx", "counts.npy"):
        if path.with_name(name).is_file():
            yield path.with_name(name), manifest.get("files", {}).get(name)


def _folder(path: Path, manifest: dict[str, Any]) -> Files:
    """Everything in the manifest's folder, with the hashes that the manifest has."""
    hashes = manifest.get("files", {})
    for file in sorted(path.parent.iterdir()):
        if file.is_file():
            yield file, hashes.get(file.name)
    yield from ((path.with_name(name), sha256) for name, sha256 in hashes.items())


def _run(path: Path, manifest: dict[str, Any]) -> Files:
    yield path, None
    for name in STATE_FILES:
        yield path.parent / manifest["state"] / name, None
    for which in ("final", "best"):
        yield path.parent / manifest[which]["weights"], manifest[which]["sha256"]
    if "start" in manifest:
        state = path.parent / manifest["state"]
        yield state / FOLDER / DESCRIPTION, None
        yield from start_files(state)


def _evaluation(path: Path, manifest: Any) -> Files:
    """Everything except hidden folders such as the answer caches."""
    for file in sorted(path.parent.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path.parent).parts):
            yield file, None


_STAGES: dict[str, Callable[[Path, Any], Files]] = {
    "raw": _raw,
    "validated": _only_manifest,
    "media": _shards,
    "split": _split,
    "records": _same_name(".parquet"),
    "tokens": _same_name(".parquet"),
    "plan": _same_name(".parquet"),
    "blend": _shards,
    "pixels": _same_name(".u8", ".sha256", ".sums"),
    "features": _same_name(".bf16", ".sha256", ".sums"),
    "bases": _folder,
    "models": _folder,
    "replay": _folder,
    "train": _run,
    "exported": _folder,
    "evaluate": _evaluation,
}
