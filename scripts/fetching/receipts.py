"""What the download layer remembers, in `.fetched` below the data path: never in the folders of the data themselves.

- `<path>.json`, the receipt: where a file came from, and its size, time and sha256 when it came
- `<path>.refused`: addresses that gave a wrong file, which costs a whole download to find out again
- `<folder>.files`: the files that belong into a folder whose address is a pattern
- `<folder>.partial`: the folder holds some members of an archive only
- `archives/`: directories of remote archives, and archives on their way
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from scripts.common.errors import UserError
from scripts.common.files import read_json, write_json
from scripts.fetching.verification import Expected, Fetched, writing

_FOLDER = ".fetched"


@dataclass(frozen=True)
class Receipt:
    """A file that we fetched."""

    address: str
    bytes: int
    mtime_ns: int
    sha256: str


def below(data_path: Path, path: str) -> Path:
    """The place of `path`, which may be written by strangers.

    Raises:
        UserError: it does not stay below `data_path`.
    """
    if not path or path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise UserError(f"{path!r} is not a path below {data_path}")
    return data_path / path


def archives(data_path: Path) -> Path:
    """Folder for archives of which only members are wanted."""
    return data_path / _FOLDER / "archives"


def _note(data_path: Path, path: str, ending: str) -> Path:
    place = below(data_path / _FOLDER, path)
    return place.with_name(f"{place.name}.{ending}")


def _write(note: Path, value: dict) -> None:
    with writing(note):
        write_json(note, value)


def write_receipt(data_path: Path, path: str, address: str, fetched: Fetched) -> Receipt:
    """Remember that the file that now lies at `path` came from `address`."""
    receipt = Receipt(address, fetched.bytes, below(data_path, path).stat().st_mtime_ns, fetched.sha256)
    _write(_note(data_path, path, "json"), asdict(receipt))
    return receipt


def valid(data_path: Path, path: str) -> Receipt | None:
    """The receipt of the file at `path`, if we fetched it and its size and time are still those. Reads no data."""
    try:
        status = below(data_path, path).stat()
        receipt = Receipt(**read_json(_note(data_path, path, "json")))
    except (OSError, UserError, TypeError):
        return None
    return receipt if (receipt.bytes, receipt.mtime_ns) == (status.st_size, status.st_mtime_ns) else None


def refusals_file(data_path: Path, path: str) -> Path:
    """Where the refusals for `path` are remembered: deleting it makes the addresses count again."""
    return _note(data_path, path, "refused")


def refusal(data_path: Path, path: str, address: str, expected: Expected) -> str | None:
    """Why `address` was refused earlier; None if it was not, or something else was expected then."""
    entry = _refusals(data_path, path).get(address)
    return entry["message"] if entry and entry["expected"] == expected.known() else None


def remember_refusal(data_path: Path, path: str, address: str, expected: Expected, message: str) -> None:
    """Remember that `address` gave a wrong file."""
    current = {
        known: entry
        for known, entry in _refusals(data_path, path).items()
        if entry["expected"] == expected.known() and known != address
    }
    current[address] = {"expected": expected.known(), "message": message}
    _write(refusals_file(data_path, path), current)


def forget_refusals(data_path: Path, path: str) -> None:
    """Forget what was remembered for `path`."""
    refusals_file(data_path, path).unlink(missing_ok=True)


def _refusals(data_path: Path, path: str) -> dict[str, dict]:
    note = refusals_file(data_path, path)
    return read_json(note) if note.is_file() else {}


def write_listing(data_path: Path, folder: str, files: Sequence[str]) -> None:
    """Remember which `files` belong into `folder`."""
    _write(listing_file(data_path, folder), {"files": sorted(files)})


def listing(data_path: Path, folder: str) -> list[str] | None:
    """What `write_listing` remembered; None if nothing."""
    note = listing_file(data_path, folder)
    return read_json(note)["files"] if note.is_file() else None


def listing_file(data_path: Path, folder: str) -> Path:
    """Where the listing of `folder` is remembered."""
    return _note(data_path, folder, "files")


def mark_partial(data_path: Path, folder: str) -> None:
    """Remember that `folder` holds some images of its set only."""
    _write(_note(data_path, folder, "partial"), {"partial": True})


def is_partial(data_path: Path, folder: str) -> bool:
    """Whether `mark_partial` was called for `folder`."""
    return _note(data_path, folder, "partial").is_file()
