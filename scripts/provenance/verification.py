"""Compares a results root with the lock files of its runs and the records of its steps, file by file.

A difference is one sentence: the file, what was found, and what is expected by the lock file of which run, or by the
record of which step. Files that several runs share are read once. Raw files are checked against the tables that list
them, if these tables are unchanged.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json, read_table
from scripts.common.fingerprint import ROOT, code_files
from scripts.provenance.locking import ENVIRONMENT, libraries, lock_sha256
from scripts.provenance.manifest_files import MINIATURE
from scripts.workflow.products import Products


@dataclass(frozen=True)
class ExpectedFile:
    """What is expected of a file: its path, size and sha256 ("" if only the size is known).

    `run` is the run whose lock file expects it, or "" if the record of the program `step` does. A raw file of the user
    was made by no step, and has `made=False`.
    """

    path: Path
    bytes: int
    sha256: str
    run: str = ""
    step: str = ""
    made: bool = True

    @property
    def origin(self) -> str:
        """Where this is written."""
        return f"lock file of {self.run}" if self.run else f"record of {self.step}"


@dataclass
class VerificationResult:
    """The runs, files and bytes that were checked. `differences` are errors; `notes` are changes outside the root.

    `damaged` are the files of the differences that a step has made, and `foreign` those that none has made.
    """

    runs: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)


def verify_root(root: Path, quick: bool = False, raw: Path | None = None) -> VerificationResult:
    """Check every file below `root` that a lock file names or a step has recorded.

    Args:
        root: the results root.
        quick: compare sizes only, and read no files except the lock files.
        raw: the folder of the user's raw files, to check these too.

    Raises:
        UserError: there is neither a lock file nor a record, or one is malformed.
    """
    paths = sorted((root / "train").glob("*/lock.json"))
    recorded = list(_recorded_files(root, locked=bool(paths)))
    if not paths and not recorded:
        raise UserError(f"no train/*/lock.json below {root}: no run is finished, or it is not a results root")
    result = VerificationResult()
    expected_files: dict[Path, ExpectedFile] = {}
    for path in paths:
        lock = _read(path)
        result.runs.append(lock["run"])
        if lock_sha256(lock) != lock["sha256"]:
            result.differences.append(
                f"{path}: was changed after it was written; its sha256 does not match its content"
            )
            result.damaged.append(path)
        for expected in _expected_files(root, lock):
            known = expected_files.setdefault(expected.path, expected)
            if known.sha256 != expected.sha256:
                result.differences.append(
                    f"{expected.path}: the runs {known.run} and {expected.run} used different versions of it; "
                    "run snakemake again, which rebuilds the older run"
                )
        result.notes += _changes(lock)
    for expected in recorded:
        locked = expected_files.setdefault(expected.path, expected)
        if (expected.bytes, expected.sha256 or locked.sha256) != (locked.bytes, locked.sha256):
            # The step has run again since the lock file was written.
            result.notes.append(f"{expected.path} was made again after the {locked.origin} was written")
            expected_files[expected.path] = expected
    _compare(expected_files.values(), quick, result)
    listed = {} if quick else _listed(root, paths, raw, result)
    _compare(listed.values(), quick, result)
    for finished in sorted((root / "train").glob("*/finished.json")):
        # The lock file of a run that starts from another one covers that one as well.
        covered = finished in expected_files and bool(expected_files[finished].run)
        if not finished.with_name("lock.json").exists() and not covered:
            result.notes.append(f"the run {finished.parent.name} has no lock.json yet and was not checked")
    return result


def _read(path: Path) -> dict[str, Any]:
    lock = read_json(path)
    if not isinstance(lock, dict) or not {"run", "files", "listings", "code", "sha256", ENVIRONMENT} <= lock.keys():
        raise UserError(f"{path} is not a lock file of a run; remove it and run snakemake again")
    return lock


def _recorded_files(root: Path, locked: bool) -> Iterator[ExpectedFile]:
    """The files that the records of finished steps name, with the hashes of shards from the manifests beside them.

    If there are lock files (`locked`), raw files are left out that a table lists: they are compared with the table.
    """
    listed = {f"{MINIATURE}/{path}" for table in root.glob("raw/*/files.parquet") for path in _paths(table)}
    shards: dict[Path, dict[str, str]] = {}
    # A lock file has a hash of its own.
    for product in (product for product in Products(root) if product.step != "lock"):
        for name, (size, sha256) in (product.outputs | product.extras).items():
            if name in listed and locked:
                continue
            path = _inside(root, name, product.step)
            if not sha256 and path.suffix == ".tar":
                if path.parent not in shards:
                    shards[path.parent] = _shard_hashes(path.parent / "manifest.json")
                sha256 = shards[path.parent].get(path.name, "")
            if size >= 0:
                yield ExpectedFile(path, size, sha256, step=product.step)


def _paths(table: Path) -> list[str]:
    try:
        return read_table(table, columns=["path"])["path"].to_pylist()
    except UserError:
        return []


def _shard_hashes(manifest: Path) -> dict[str, str]:
    try:
        return {shard["name"]: shard["sha256"] for shard in read_json(manifest)["shards"]}
    except (UserError, KeyError, TypeError):
        return {}


def _expected_files(root: Path, lock: dict[str, Any]) -> Iterator[ExpectedFile]:
    for name, entry in lock["files"].items():
        yield ExpectedFile(_inside(root, name, lock["run"]), entry["bytes"], entry["sha256"], lock["run"])


def _inside(folder: Path, name: str, origin: str) -> Path:
    """The path of a file that a lock file, record or table names. It must not lead out of its folder."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise UserError(f"the lock file or record of {origin} names {name!r}, which does not lie below {folder}")
    return folder / pure


def _compare(expected_files: Iterable[ExpectedFile], quick: bool, result: VerificationResult) -> None:
    """Compare files with what is expected of them, in threads: hashing releases the interpreter's lock."""
    ordered = sorted(expected_files, key=lambda expected: expected.path)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for expected, fault in zip(ordered, pool.map(lambda expected: _fault(expected, quick), ordered), strict=True):
            result.files += 1
            result.bytes += expected.bytes
            if fault:
                result.differences.append(f"{expected.path}: {fault}")
                (result.damaged if expected.made else result.foreign).append(expected.path)


def _fault(expected: ExpectedFile, quick: bool) -> str:
    try:
        size = expected.path.stat().st_size
    except OSError:
        return f"is missing; {f'the run {expected.run} needs it' if expected.run else f'{expected.step} has made it'}"
    if size != expected.bytes:
        return f"has {size:,} bytes, and {expected.bytes:,} in the {expected.origin}"
    if quick or not expected.sha256:
        return ""
    found = file_sha256(expected.path)
    if found != expected.sha256:
        return f"has the sha256 {found[:16]}..., and {expected.sha256[:16]}... in the {expected.origin}"
    return ""


def _listed(root: Path, locks: list[Path], raw: Path | None, result: VerificationResult) -> dict[Path, ExpectedFile]:
    """The raw files that tables of the root list: synthetic ones below the root, and with `raw` those of the user."""
    listed: dict[Path, ExpectedFile] = {}
    if raw is not None and not locks:
        for table in sorted(root.glob("raw/*/files.parquet")):
            for row in read_table(table, columns=["path", "bytes", "sha256"]).to_pylist():
                path = _inside(raw, row["path"], f"the table {table}")
                listed[path] = ExpectedFile(path, row["bytes"], row["sha256"], step="fetch", made=False)
    for lock in map(_read, locks):
        for name, below in lock["listings"].items():
            table = _inside(root, name, lock["run"])
            folder = _inside(root, below, lock["run"]) if below else raw
            if folder is None or any(fault.startswith(f"{table}:") for fault in result.differences):
                continue
            for row in read_table(table, columns=["path", "bytes", "sha256"]).to_pylist():
                path = _inside(folder, row["path"], lock["run"])
                listed.setdefault(path, ExpectedFile(path, row["bytes"], row["sha256"], lock["run"], made=bool(below)))
    return listed


def _changes(lock: dict[str, Any]) -> list[str]:
    """Notes about code and versions of libraries that changed after the lock file was written."""
    notes = []
    present = {name for name in lock["programs"] if (ROOT / f"{name.replace('.', '/')}.py").is_file()}
    now = code_files(*present)
    for path in sorted(lock["code"].keys() | now.keys()):
        before, after = lock["code"].get(path), now.get(path)
        if before != after:
            change = "is new" if before is None else "was removed" if after is None else "has changed"
            notes.append(f"code: {path} {change} since {lock['run']} was made")
    installed = libraries()
    for name, version in sorted(lock[ENVIRONMENT]["libraries"].items()):
        if version != installed.get(name):
            here = installed.get(name, "not installed")
            notes.append(f"environment: {name} was {version} when {lock['run']} was made, and is {here} here")
    return notes
