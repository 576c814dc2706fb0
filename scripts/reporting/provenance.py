"""The report's section on provenance: hashes of inputs and weights, settings, versions, lock file of every run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.common.files import canonical_json, read_json
from scripts.common.formatting import format_bytes, format_count


def provenance(
    finished: Iterable[Path], metrics: Iterable[Path], locks: Iterable[Path], colours: Mapping[str, int]
) -> list[dict[str, Any]]:
    """One entry per run: facts (label, value), and details (label, lines), in the order of `colours`."""
    evaluated = {entry["run"]: entry for entry in map(read_json, metrics)}
    locks_by_run = {entry["run"]: entry for entry in map(read_json, locks)}
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
        if evaluation := evaluated.get(run["run"]):
            exported = sorted(evaluation["checkpoints"].items())
            facts += [(f"exported {name}", entry["checkpoint"]) for name, entry in exported]
            details.append(("evaluation settings", _flat(evaluation["settings"])))
            details.append(("evaluation inputs and versions", _flat(evaluation["inputs"] | evaluation["versions"])))
        if lock := locks_by_run.get(run["run"]):
            total = format_bytes(sum(file["bytes"] for file in lock["files"].values()))
            facts.append(("lock file", lock["sha256"]))
            details.append((f"lock file: {format_count(len(lock['files']))} files, {total}", _files(lock)))
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
    """The files of a lock file, counted per folder; `lock.json` has their hashes."""
    folders: dict[str, list[int]] = {}
    for path, file in lock["files"].items():
        folders.setdefault("/".join(path.split("/")[:2]), []).append(file["bytes"])
    return [
        f"{name}: {format_count(len(sizes))} files, {format_bytes(sum(sizes))}"
        for name, sizes in sorted(folders.items())
    ]
