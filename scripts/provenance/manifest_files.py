"""Which files stand behind a manifest, with their sizes and hashes.

The passport of a run is made of manifests. Each knows the large files beside it by size and sha256, and these are taken
from it, so that a root of a terabyte is not read again; small files that no manifest names are hashed here. What tells
times (logs, `metrics.jsonl`, TensorBoard) or comes and goes (checkpoints, journals) belongs to no passport.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json

STATE_FILES = ("settings.json", "inputs.json", "plans.json", "finished.json")
MINIATURE = "raw/miniature"


@dataclass(frozen=True)
class File:
    """A file below the results root: size in bytes and sha256 of its content."""

    path: str
    bytes: int
    sha256: str


def files_of(root: Path, manifest: str) -> list[File]:
    """The files that `manifest`, a path relative to `root`, stands for, itself among them, by path.

    Raises:
        UserError: a file is missing, or no step has such a manifest.
    """
    stage = manifest.split("/")[0]
    if stage not in _STAGES:
        raise UserError(f"{manifest} is no manifest of a step: its folder is none of {', '.join(sorted(_STAGES))}")
    path = root / manifest
    # A name given twice keeps the first hash, which is the manifest's where it has one.
    found: dict[Path, str | None] = {}
    for file, sha256 in _STAGES[stage](path, read_json(path)):
        found[file] = found.get(file) or sha256
    return sorted((_file(root, file, sha256) for file, sha256 in found.items()), key=lambda file: file.path)


def listings_of(root: Path, manifest: str) -> dict[str, str]:
    """Tables of raw files behind a manifest, each with the folder that its paths begin at; "" where it is another."""
    if not (manifest.startswith("raw/") and manifest.endswith("/source.json")):
        return {}
    drawn = read_json(root / manifest)["provided_by"] == "miniature" and (root / MINIATURE).is_dir()
    return {manifest.replace("source.json", "files.parquet"): MINIATURE if drawn else ""}


def _file(root: Path, path: Path, sha256: str | None) -> File:
    if not path.is_file():
        raise UserError(f"{path} is missing, though its manifest is there: run snakemake again")
    return File(path.relative_to(root).as_posix(), path.stat().st_size, sha256 or file_sha256(path))


Found = Iterator[tuple[Path, str | None]]


def _alone(path: Path, manifest: Any) -> Found:
    yield path, None


def _raw(path: Path, manifest: dict[str, Any]) -> Found:
    yield path, None
    if path.name == "source.json":
        yield path.with_name("files.parquet"), None
        yield path.with_name("images.parquet"), None
    elif path.name == "miniature.json":
        # The drawn datasets are listed by their sources; this is what evaluation reads beside them.
        yield path.with_name("kinds.json"), None
        for folder in ("dialogues", "tasks"):
            yield from ((file, None) for file in sorted((path.parent / folder).rglob("*")) if file.is_file())


def _beside(*endings: str) -> Callable[[Path, Any], Found]:
    """A manifest whose data lie beside it under the same name: `llava.json` tells of `llava.parquet`."""

    def found(path: Path, manifest: Any) -> Found:
        yield path, None
        stem = path.name.removesuffix(".json").removesuffix(".report")
        for ending in endings:
            yield path.with_name(f"{stem}{ending}"), None

    return found


def _split(path: Path, manifest: Any) -> Found:
    yield path, None
    yield path.with_name("heldout.parquet"), None


def _shards(path: Path, manifest: dict[str, Any]) -> Found:
    """Tar shards with their offsets, what their writers told, and the tables beside them."""
    yield path, None
    for shard in manifest["shards"]:
        tar = path.with_name(shard["name"])
        yield tar, shard["sha256"]
        yield tar.with_name(f"{tar.name}.idx"), None
        told = sorted((path.parent / "parts").glob(f"{tar.stem}.*"))
        yield from ((part, None) for part in told)
    for name in ("index.parquet", "rejected.parquet", "units.idx"):
        if path.with_name(name).is_file():
            yield path.with_name(name), None


def _folder(path: Path, manifest: dict[str, Any]) -> Found:
    """Everything in the manifest's own folder; hashes that it names are its word."""
    named = manifest.get("files", {})
    for file in sorted(path.parent.iterdir()):
        if file.is_file():
            yield file, named.get(file.name)
    yield from ((path.with_name(name), sha256) for name, sha256 in named.items())


def _run(path: Path, manifest: dict[str, Any]) -> Found:
    yield path, None
    for name in STATE_FILES:
        yield path.parent / manifest["state"] / name, None
    for which in ("final", "best"):
        yield path.parent / manifest[which]["weights"], manifest[which]["sha256"]


def _evaluation(path: Path, manifest: Any) -> Found:
    """Everything but the journal, a hidden folder of what a killed evaluation goes on from."""
    for file in sorted(path.parent.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path.parent).parts):
            yield file, None


_STAGES: dict[str, Callable[[Path, Any], Found]] = {
    "raw": _raw,
    "validated": _alone,
    "media": _shards,
    "split": _split,
    "records": _beside(".parquet"),
    "tokens": _beside(".parquet"),
    "plan": _beside(".parquet"),
    "blend": _shards,
    "pixels": _beside(".u8", ".sha256"),
    "bases": _folder,
    "models": _folder,
    "train": _run,
    "exported": _folder,
    "evaluate": _evaluation,
}
