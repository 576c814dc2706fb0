"""Checks a folder of weights, tokenizer or processor against its manifest before it is used.

`manifest.json` of bases, models and exported folders has the sha256 of every file under `files`. A folder without such
a manifest (a download from the hub, a model of your own) has nothing to be compared with.

Hashing a model of 140 GB takes minutes, so the hashes of large files are remembered in `visualchat/hashes.json` of the
user's cache folder (`XDG_CACHE_HOME`, default `~/.cache`). A remembered hash counts while device, inode, size, and the
times of the last change of content and of the inode are the same.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from scripts.common.errors import damaged
from scripts.common.files import file_sha256, read_json, write_json

MANIFEST = "manifest.json"
LARGE = 32 << 20
"""Bytes from which on a file's hash is remembered: hashing smaller ones takes less than a tenth of a second."""

_MOST = 1000
_SETTLED_NS = 2_000_000_000
"""A file that changed more recently could change once more without another time stamp, which file systems round."""


def check_folder(folder: str | Path) -> None:
    """Compare the files of `folder` with its manifest, where it has one of ours.

    Raises:
        UserError: a file is missing or damaged; the message names it and the command that mends it.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        return
    for name, sha256 in sorted(files.items()):
        try:
            found = remembered_sha256(folder / name)
        except FileNotFoundError:
            raise damaged(folder / name, "is missing", f"{folder / MANIFEST} lists it") from None
        if found != sha256:
            raise damaged(folder / name, "is damaged: it does not have the sha256 of its manifest")


def remembered_sha256(path: Path) -> str:
    """The sha256 of a file, as hex; of a large file it may be the one that was computed at its last use."""
    before = os.stat(path)
    if before.st_size < LARGE:
        return file_sha256(path)
    key, state = str(path.resolve()), _state(before)
    known = _read_cache().get(key)
    if isinstance(known, list) and len(known) == 2 and known[0] == state:
        return known[1]
    sha256 = file_sha256(path)
    settled = time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS
    if settled and _state(os.stat(path)) == state:
        _remember(key, [state, sha256])
    return sha256


def _state(found: os.stat_result) -> list[int]:
    """What a file has other values of once it was written to or replaced."""
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _cache_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visualchat" / "hashes.json"


def _read_cache() -> dict[str, Any]:
    """The remembered hashes by path; none if there are none, or if they cannot be read."""
    try:
        known = json.loads(_cache_path().read_bytes())
    except (OSError, ValueError, RuntimeError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(key: str, entry: list[Any]) -> None:
    """Write the cache with one entry more. Without it everything works, only more slowly."""
    known = {path: value for path, value in _read_cache().items() if path != key and Path(path).is_file()}
    known = dict(list(known.items())[-_MOST:])
    with suppress(OSError, RuntimeError):
        write_json(_cache_path(), known | {key: entry})
