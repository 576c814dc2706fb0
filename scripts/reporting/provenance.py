"""The report's part about where every run came from: hashes of inputs and weights, settings, versions, its passport."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.common.files import canonical_json, read_json
from scripts.common.formatting import format_bytes, format_count


def provenance(
    finished: Iterable[Path], metrics: Iterable[Path], locks: Iterable[Path], colours: Mapping[str, int]
) -> list[dict[str, Any]]:
    """What every run came from: hashes of its inputs and weights, its settings, the versions of the libraries."""
    evaluated = {entry["run"]: entry for entry in map(read_json, metrics)}
    passports = {entry["run"]: entry for entry in map(read_json, locks)}
    entries = []
    for path in map(Path, finished):
        run = read_json(path)
        state = path.parent / run["state"]
        facts = [("run", run["fingerprint"]), ("steps", f"{run['steps']} in {run['epochs']} epochs")]
        facts += [(f"{name} weights", run[name]["sha256"]) for name in ("final", "best")]
        details = [
            ("training settings", _flat(read_json(state / "settings.json"))),
            ("inputs", _flat(read_json(state / "inputs.json"))),
            ("training environment", _flat(read_json(state / "environment.json"))),
        ]
        if judged := evaluated.get(run["run"]):
            exported = sorted(judged["checkpoints"].items())
            facts += [(f"exported {name}", entry["checkpoint"]) for name, entry in exported]
            details.append(("evaluation settings", _flat(judged["settings"])))
            details.append(("evaluation inputs and versions", _flat(judged["inputs"] | judged["versions"])))
        if lock := passports.get(run["run"]):
            total = format_bytes(sum(file["bytes"] for file in lock["files"].values()))
            facts.append(("passport", lock["sha256"]))
            details.append((f"passport: {format_count(len(lock['files']))} files, {total}", _files(lock)))
            details.append((f"code: {format_count(len(lock['code']))} files", _flat(lock["code"])))
            details.append(("libraries", _flat(lock["environment"]["libraries"])))
        entries.append({"name": run["run"], "colour": colours[run["run"]], "facts": facts, "details": details})
    return sorted(entries, key=lambda entry: list(colours).index(entry["name"]))


def _flat(value: Any, name: str = "") -> list[str]:
    """Nested JSON as lines "a.b = value"."""
    if isinstance(value, dict):
        return [line for key in sorted(value) for line in _flat(value[key], f"{name}.{key}" if name else key)]
    return [f"{name} = {canonical_json(value)}"]


def _files(lock: Mapping[str, Any]) -> list[str]:
    """What a passport names, folder by folder: the hashes themselves stand in `lock.json`."""
    folders: dict[str, list[int]] = {}
    for path, file in lock["files"].items():
        folders.setdefault("/".join(path.split("/")[:2]), []).append(file["bytes"])
    return [
        f"{name}: {format_count(len(sizes))} files, {format_bytes(sum(sizes))}"
        for name, sizes in sorted(folders.items())
    ]
