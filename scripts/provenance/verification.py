"""Compares a results root with the passports of its runs, file by file.

A difference is a sentence: which file, what it is, and what which passport says it should be. Files that several runs
share are read once. The raw files are checked through the tables that list them, once these are found to be right.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json, read_table
from scripts.common.fingerprint import ROOT, code_files
from scripts.provenance.locking import ENVIRONMENT, libraries, lock_sha256


@dataclass(frozen=True)
class ExpectedFile:
    """What a passport says of a file: where it lies, its size, its sha256 ("" where only the size is known)."""

    path: Path
    bytes: int
    sha256: str
    by: str


@dataclass
class VerificationResult:
    """What was checked and what differs: `differences` are faults of the root, `notes` are not."""

    runs: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(root: Path, quick: bool = False, raw: Path | None = None) -> VerificationResult:
    """Check everything below `root` that a passport names.

    Args:
        root: the results root.
        quick: compare sizes only, and read no file but the passports.
        raw: the folder of the user's raw files, where these are to be checked as well.

    Raises:
        UserError: there is no passport, or one is not what a passport is.
    """
    paths = sorted((root / "train").glob("*/lock.json"))
    if not paths:
        raise UserError(f"no train/*/lock.json below {root}: nothing there is finished, or it is no results root")
    verdict = VerificationResult()
    promises: dict[Path, ExpectedFile] = {}
    for path in paths:
        lock = _read(path)
        verdict.runs.append(lock["run"])
        if lock_sha256(lock) != lock["sha256"]:
            verdict.differences.append(f"{path}: has been changed since it was written; its own sha256 does not fit")
        for promise in _promises(root, lock):
            known = promises.setdefault(promise.path, promise)
            if known.sha256 != promise.sha256:
                verdict.differences.append(
                    f"{promise.path}: the runs {known.by} and {promise.by} were made from different ones; "
                    "run snakemake again, which makes the older run anew"
                )
        verdict.notes += _changes(lock)
    _compare(promises.values(), quick, verdict)
    listed = {} if quick else _listed(root, paths, raw, verdict)
    _compare(listed.values(), quick, verdict)
    for finished in sorted((root / "train").glob("*/finished.json")):
        if not finished.with_name("lock.json").exists():
            verdict.notes.append(f"the run {finished.parent.name} has no lock.json yet: it is not checked")
    return verdict


def _read(path: Path) -> dict[str, Any]:
    lock = read_json(path)
    if not isinstance(lock, dict) or not {"run", "files", "listings", "code", "sha256", ENVIRONMENT} <= lock.keys():
        raise UserError(f"{path} is no passport of a run; remove it and run snakemake again")
    return lock


def _promises(root: Path, lock: dict[str, Any]) -> Iterator[ExpectedFile]:
    for name, told in lock["files"].items():
        yield ExpectedFile(_inside(root, name, lock["run"]), told["bytes"], told["sha256"], lock["run"])


def _inside(folder: Path, name: str, by: str) -> Path:
    """The path of a name that a passport or a table gives; it may not lead out of its folder."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise UserError(f"the passport of {by} names {name!r}, which does not lie below {folder}")
    return folder / pure


def _compare(promises: Any, quick: bool, verdict: VerificationResult) -> None:
    """Compare files with what is promised of them; hashing in threads, as it leaves the interpreter's lock alone."""
    ordered = sorted(promises, key=lambda promise: promise.path)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for promise, fault in zip(ordered, pool.map(lambda promise: _fault(promise, quick), ordered), strict=True):
            verdict.files += 1
            verdict.bytes += promise.bytes
            if fault:
                verdict.differences.append(f"{promise.path}: {fault}")


def _fault(promise: ExpectedFile, quick: bool) -> str:
    try:
        size = promise.path.stat().st_size
    except OSError:
        return f"is missing; the run {promise.by} needs it"
    if size != promise.bytes:
        return f"has {size:,} bytes, and {promise.bytes:,} in the passport of {promise.by}"
    if quick or not promise.sha256:
        return ""
    found = file_sha256(promise.path)
    if found != promise.sha256:
        return f"has the sha256 {found[:16]}..., and {promise.sha256[:16]}... in the passport of {promise.by}"
    return ""


def _listed(root: Path, locks: list[Path], raw: Path | None, verdict: VerificationResult) -> dict[Path, ExpectedFile]:
    """The raw files that tables of the root list: those drawn below the root, and with `raw` those of the user."""
    found: dict[Path, ExpectedFile] = {}
    for lock in map(_read, locks):
        for name, below in lock["listings"].items():
            table = _inside(root, name, lock["run"])
            folder = _inside(root, below, lock["run"]) if below else raw
            if folder is None or any(fault.startswith(f"{table}:") for fault in verdict.differences):
                continue
            for row in read_table(table, columns=["path", "bytes", "sha256"]).to_pylist():
                path = _inside(folder, row["path"], lock["run"])
                found.setdefault(path, ExpectedFile(path, row["bytes"], row["sha256"], lock["run"]))
    return found


def _changes(lock: dict[str, Any]) -> list[str]:
    """What is another here and now than when the passport was written: code, and versions of libraries."""
    notes = []
    present = {name for name in lock["programs"] if (ROOT / f"{name.replace('.', '/')}.py").is_file()}
    now = code_files(*present)
    for path in sorted(lock["code"].keys() | now.keys()):
        before, after = lock["code"].get(path), now.get(path)
        if before != after:
            change = "is new" if before is None else "is gone" if after is None else "has changed"
            notes.append(f"code: {path} {change} since {lock['run']} was made")
    before, after = lock[ENVIRONMENT]["libraries"], libraries()
    for name in sorted(before):
        if before[name] != after.get(name):
            here = after.get(name, "not installed")
            notes.append(f"environment: {name} was {before[name]} when {lock['run']} was made, and is {here} here")
    return notes
