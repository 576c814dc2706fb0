"""Digests of the files of a user, by which Snakemake notices that one of them has changed.

They are computed at every start, before anything runs, and a user may keep 100,000 images as files: so every folder is
listed once, and every file costs one call of `stat`. A file is opened only where its time has changed and its size has
not: if its content is what fetch has listed, it counts with its earlier time.
"""

import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from scripts.common.errors import is_results_root
from scripts.common.files import atomic, file_sha256, read_table
from scripts.common.linked_folders import begin, inner_folder
from scripts.config.registry import glob_pattern, path_matches
from scripts.fetching.receipts import is_partial, recorded, valid

_SMALL = 64 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
_MOST_BYTES = 1 << 30
"""Most bytes to read because of changed times, at a start of Snakemake."""
_NOT_DATA = (".log", ".out", ".err", ".txt", ".md", ".html", ".yaml", ".yml", ".toml", ".py", ".pyc", ".ipynb", ".sh")
"""Endings of files that lie beside a user's data and change all the time: no rows and, in practice, no images."""


class _File(NamedTuple):
    """A regular file: its path below the data path, its size in bytes and its time of change in nanoseconds."""

    path: str
    bytes: int
    mtime_ns: int


@cache
def folder_digest(
    folder: str, patterns: tuple[str, ...], fetched: str = "", memory: str = "", follow: bool = False
) -> str:
    """A hash, 16 hex digits, of (name, size, time of change) of the files that match `patterns` below `folder`.

    Downloaded files are skipped: they depend on the registry, and do not exist yet when the first digest is computed.

    Args:
        folder: in which to look.
        patterns: paths, folders, or patterns with `*` and `**`; "./" is the whole folder. Of folders, hidden files and
            results of this project do not count.
        fetched: the table of files that fetch has written of them, with their hashes.
        memory: the file that `remember` has written.
        follow: of a custom dataset: links to folders are followed (see `scripts.common.linked_folders`), and files
            that are neither rows nor images by their ending do not count.
    """
    files = _files(folder, patterns, follow)
    found = _digest(files)
    if not memory or not os.path.isfile(memory):
        return found
    with open(memory, encoding="utf-8", errors="surrogateescape") as file:
        if file.readline().rstrip("\n") == found:
            return found
        earlier = dict(json.loads(line) for line in file)
    return _digest(_with_earlier_times(folder, files, earlier, fetched))


def remember(folder: str, patterns: tuple[str, ...], fetched: str, memory: str, follow: bool = False) -> None:
    """Write size and time of every file that the digest with these arguments covers into the file `memory`."""
    digest = folder_digest(folder, patterns, fetched, memory, follow)
    files = _files(folder, patterns, follow)
    if os.path.isfile(memory):
        with open(memory, encoding="utf-8", errors="surrogateescape") as file:
            if file.readline().rstrip("\n") == digest:
                return
            earlier = dict(json.loads(line) for line in file)
        files = _with_earlier_times(folder, files, earlier, fetched)
    with atomic(memory, "w", errors="surrogateescape") as file:
        file.write(f"{digest}\n")
        for each in files:
            file.write(json.dumps([each.path, [each.bytes, each.mtime_ns]], ensure_ascii=False) + "\n")


@cache
def base_digest(folder: str, root: str, weights: bool = True) -> str:
    """A hash, 16 hex digits, of a folder with a model or tokenizer of the user: replacing its files is a cause.

    Small files count by their content, large ones by size and time of change. It is "" for a folder below the results
    folder `root`, which rules depend on by its manifest, and for a hub name. Without `weights` these do not count.
    """
    if not os.path.isdir(folder) or Path(folder).resolve().is_relative_to(Path(root).resolve()):
        return ""
    digest = hashlib.sha256()
    for file in sorted(_below(folder, ".")):
        if weights or not file.path.endswith(_WEIGHTS):
            large = f"{file.bytes} {file.mtime_ns}"
            content = file_sha256(Path(folder, file.path)) if file.bytes <= _SMALL else large
            digest.update(os.fsencode(f"{file.path}\0{content}\n"))
    return digest.hexdigest()[:16]


def files_digest(paths: Iterable[Path]) -> str:
    """A hash, 16 hex digits, of (name, size, time of change) of files; "" for none. Missing ones are left out."""
    files = [file for path in sorted(set(paths)) if (file := _regular(str(path), path))]
    return _digest(files) if files else ""


def _files(folder: str, patterns: tuple[str, ...], follow: bool) -> list[_File]:
    """The files that match `patterns` and were not downloaded."""
    with_receipt = recorded(Path(folder))
    return [
        file
        for pattern in patterns
        for file in _matching(folder, pattern, follow)
        if file.path not in with_receipt or not valid(Path(folder), file.path)
    ]


def _digest(files: Iterable[_File]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(f"{file.path}\0{file.bytes}\0{file.mtime_ns}\n"))
    return digest.hexdigest()[:16]


def _with_earlier_times(
    folder: str, files: list[_File], earlier: Mapping[str, Sequence[int]], fetched: str
) -> list[_File]:
    """`files`, those with an earlier time whose content is that which fetch has listed, if these are not too many."""
    touched = [
        file
        for file in files
        if file.path in earlier and earlier[file.path][0] == file.bytes and earlier[file.path][1] != file.mtime_ns
    ]
    if not touched or sum(file.bytes for file in touched) > _MOST_BYTES or not os.path.isfile(fetched):
        return files
    table = read_table(fetched, columns=["path", "sha256"])
    hashes = dict(zip(table["path"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    same = {file.path for file in touched if hashes.get(file.path) == file_sha256(Path(folder, file.path))}
    return [file._replace(mtime_ns=earlier[file.path][1]) if file.path in same else file for file in files]


def _matching(folder: str, pattern: str, follow: bool) -> list[_File]:
    """The files that match one pattern, sorted by path."""
    if not pattern.endswith("/") and not os.path.isdir(os.path.join(folder, pattern)):
        paths = [pattern] if os.path.isfile(os.path.join(folder, pattern)) else _globbed(folder, pattern, follow)
        return [file for path in paths if (file := _regular(path, Path(folder, path)))]
    if is_partial(Path(folder), pattern):
        return []
    return sorted(_data_below(folder, os.path.normpath(pattern), follow))


def _globbed(folder: str, pattern: str, follow: bool) -> list[str]:
    """The paths of the files that match `pattern`."""
    inner, name = os.path.split(pattern)
    if "*" in inner or name == "**":
        outer = os.path.dirname(pattern[: pattern.index("*")]) or "."
        return sorted(file.path for file in _data_below(folder, outer, follow) if path_matches(file.path, pattern))
    found = sorted(glob.glob(glob_pattern(name), root_dir=os.path.join(folder, inner)))
    return [os.path.join(inner, each) for each in found]


def _data_below(folder: str, path: str, follow: bool) -> Iterator[_File]:
    """All files in the folder `path` below `folder` and in its subfolders that may be data of the user."""
    pending = [begin(os.path.join(folder, path))] if os.path.isdir(os.path.join(folder, path)) else []
    while pending:
        inner = pending.pop()
        name = os.path.relpath(inner.path, folder)
        try:
            entries = list(os.scandir(inner.path))
        except OSError:
            # Fetch reports what is missing or cannot be read.
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if below := inner_folder(inner, entry, follow):
                if not is_results_root(below.path):
                    pending.append(below)
            elif follow and entry.name.lower().endswith(_NOT_DATA):
                continue
            elif file := _regular(entry.name if name == "." else f"{name}/{entry.name}", entry):
                yield file


def _below(folder: str, path: str) -> Iterator[_File]:
    """All files in the folder `path` below `folder` and in its subfolders; links to folders are not followed."""
    pending = [path]
    while pending:
        inner = pending.pop()
        try:
            entries = os.scandir(os.path.join(folder, inner))
        except OSError:
            continue
        with entries:
            for entry in entries:
                name = entry.name if inner == "." else f"{inner}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
                elif file := _regular(name, entry):
                    yield file


def _regular(path: str, entry: "os.DirEntry[str] | Path") -> _File | None:
    """A file that exists and is no folder, pipe or socket; a link counts as what it leads to."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return _File(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
