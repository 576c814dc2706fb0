"""Records of what was downloaded, in `.fetched` below the data path, so that the folders of the data contain only data.

- `<path>.json`, the receipt: address of a file, and its size, time and sha256 after the download
- `<path>.refused`: addresses that gave a wrong file; finding out again would take a whole download
- `<folder>.files`: the files that belong to a folder whose address is a pattern
- `<folder>.partial`: the folder contains only some members of an archive
- `archives/`: central directories of remote archives, and partially downloaded archives
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import read_json, write_json
from scripts.fetching.verification import Expected, Fetched, disk_errors

_FOLDER = ".fetched"


@dataclass(frozen=True)
class Receipt:
    """A downloaded file: where from, and its size, time of change and sha256 after the download."""

    address: str
    bytes: int
    mtime_ns: int
    sha256: str


def below(data_path: Path, path: str) -> Path:
    """`path`, which may come from data, as a path below `data_path`.

    Raises:
        UserError: it leads out of `data_path`.
    """
    if not path or path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise UserError(f"{path!r} is not a path below {data_path}")
    return data_path / path


def archives(data_path: Path) -> Path:
    """Folder for archives of which only single members are used."""
    return data_path / _FOLDER / "archives"


def _record_file(data_path: Path, path: str, extension: str) -> Path:
    recorded = below(data_path / _FOLDER, path)
    return recorded.with_name(f"{recorded.name}.{extension}")


def _write(record_file: Path, value: dict[str, Any]) -> None:
    with disk_errors(record_file):
        write_json(record_file, value)


def write_receipt(data_path: Path, path: str, address: str, fetched: Fetched) -> Receipt:
    """Record that the file that is now at `path` came from `address`."""
    receipt = Receipt(address, fetched.bytes, below(data_path, path).stat().st_mtime_ns, fetched.sha256)
    _write(_record_file(data_path, path, "json"), asdict(receipt))
    return receipt


def recorded(data_path: Path) -> frozenset[str]:
    """The paths of all files that have a receipt, valid or not, found in one pass over the records.

    With it, a program that looks at many files opens no record of files that were never downloaded.
    """
    root = data_path / _FOLDER
    records = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    paths = (os.path.relpath(record, root)[:-5] for record in records if record.endswith(".json"))
    # No listed file has a name that is not valid UTF-8.
    return frozenset(path for path in paths if path.encode("utf-8", "ignore").decode() == path)


def valid(data_path: Path, path: str) -> Receipt | None:
    """The receipt of the file at `path` if it was downloaded and its size and time are unchanged. Reads no data."""
    try:
        status = below(data_path, path).stat()
        receipt = Receipt(**read_json(_record_file(data_path, path, "json")))
    except (OSError, UserError, TypeError):
        return None
    return receipt if (receipt.bytes, receipt.mtime_ns) == (status.st_size, status.st_mtime_ns) else None


def rejections_file(data_path: Path, path: str) -> Path:
    """The file with the rejected addresses of `path`; if it is deleted, they are tried again."""
    return _record_file(data_path, path, "refused")


def rejection(data_path: Path, path: str, address: str, expected: Expected) -> str | None:
    """Why `address` was rejected earlier; None if it was not, or if another file was expected then."""
    entry = _rejections(data_path, path).get(address)
    return entry["message"] if entry and entry["expected"] == expected.known() else None


def add_rejection(data_path: Path, path: str, address: str, expected: Expected, message: str) -> None:
    """Record that `address` gave a wrong file."""
    current = {
        other: entry
        for other, entry in _rejections(data_path, path).items()
        if entry["expected"] == expected.known() and other != address
    }
    current[address] = {"expected": expected.known(), "message": message}
    _write(rejections_file(data_path, path), current)


def delete_rejections(data_path: Path, path: str) -> None:
    """Delete the record of rejected addresses of `path`."""
    rejections_file(data_path, path).unlink(missing_ok=True)


def _rejections(data_path: Path, path: str) -> dict[str, dict[str, Any]]:
    record_file = rejections_file(data_path, path)
    return read_json(record_file) if record_file.is_file() else {}


def write_listing(data_path: Path, folder: str, files: Sequence[str]) -> None:
    """Record which `files` belong to `folder`."""
    _write(listing_file(data_path, folder), {"files": sorted(files)})


def listing(data_path: Path, folder: str) -> list[str] | None:
    """The files recorded by `write_listing`; None if there is no listing."""
    record_file = listing_file(data_path, folder)
    return read_json(record_file)["files"] if record_file.is_file() else None


def listing_file(data_path: Path, folder: str) -> Path:
    """The file with the listing of `folder`."""
    return _record_file(data_path, folder, "files")


def mark_partial(data_path: Path, folder: str) -> None:
    """Record that `folder` contains only some images of its set."""
    _write(_record_file(data_path, folder, "partial"), {"partial": True})


def is_partial(data_path: Path, folder: str) -> bool:
    """Whether `mark_partial` was called for `folder`."""
    return _record_file(data_path, folder, "partial").is_file()
