"""Downloading the published files of the registry, each from the first of its addresses that gives the right file.

An existing file is neither changed nor checked: what the user has placed may be a smaller or newer copy, and is checked
by `validate`. A downloaded file must have the size and hash that the registry states. Files that need an agreement, or
that have no address, give an error with the steps to take, before anything is downloaded.
"""

import fnmatch
import os
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from scripts.common.errors import UserError
from scripts.common.files import text_sha256
from scripts.config.registry import Address, Download
from scripts.fetching import receipts
from scripts.fetching.archive import extract_member, is_archive, is_zip
from scripts.fetching.connection import DEFAULTS, FetchOptions, Location
from scripts.fetching.download import download_file
from scripts.fetching.receipts import below
from scripts.fetching.remote_zip import RemoteZip
from scripts.fetching.verification import (
    UNKNOWN,
    AccessDeniedError,
    AddressError,
    Expected,
    Fetched,
    WrongContentError,
)

_LARGEST_IMAGE = 1 << 28
_LONGEST_NAME = 200
"""File systems allow 255 bytes; a temporary file has a longer name than the final one."""


def obtain(download: Download, data_path: Path, options: FetchOptions = DEFAULTS) -> list[Path]:
    """Download a file, or the files of a folder, unless they exist; return their paths.

    A folder whose files were placed by hand counts as complete.

    Args:
        download: its entry in the registry.
        data_path: folder to download into.
        options: how to download.

    Raises:
        UserError: it is not available; the message has the answer of every address and what to do by hand.
    """
    if download.path.endswith("/"):
        return _Folder(download, data_path, options).obtain()
    target = below(data_path, download.path)
    if not target.is_file():
        _refuse_early(download, data_path, options)
        _try_addresses(download, data_path, lambda address: _one_file(address, download, data_path, options))
    return [target]


def obtain_images(
    download: Download, data_path: Path, folder: str, names: Collection[str], options: FetchOptions = DEFAULTS
) -> list[str]:
    """Download single images from a remote .zip into `folder`, which is then marked as partial.

    A folder that contains files which were placed by hand is not marked.

    Args:
        download: the archive, which is not downloaded as a whole.
        data_path: folder of all raw files.
        folder: the folder that the archive stands for in the registry, below `data_path`, ending in "/".
        names: of files in it; they come from data and may be invalid file names.
        options: how to download.

    Returns:
        The names that the archive lacks, sorted.

    Raises:
        UserError: the archive is not available.
    """
    target = below(data_path, folder)
    valid_names = {name for name in names if _is_file_name(name)}
    missing = sorted(name for name in valid_names if not (target / name).is_file())
    not_found = set(names) - valid_names
    if missing:
        _refuse_early(download, data_path, options, f"{len(missing)} images of {folder}")

        def fetch(address: Address) -> None:
            not_found.update(_images(address, data_path, folder, missing, options))

        _try_addresses(download, data_path, fetch)
    return sorted(not_found)


def _images(address: Address, data_path: Path, folder: str, names: list[str], options: FetchOptions) -> list[str]:
    """Download those of `names` that an archive contains; return the others."""
    target = below(data_path, folder)
    archive = _remote_zip(_only(_locate(address, options)), data_path, options)
    members = _by_base_name(archive, target.name)
    targets = {members[name]: target / name for name in names if name in members}
    if targets and (receipts.is_partial(data_path, folder) or not target.is_dir() or not any(target.iterdir())):
        receipts.mark_partial(data_path, folder)
    archive.extract(targets, _LARGEST_IMAGE, options.label or f"images of {folder}")
    return [name for name in names if name not in members]


def _is_file_name(name: str) -> bool:
    """Whether `name` is valid as the name of a file in a folder."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    return 0 < length <= _LONGEST_NAME and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def _by_base_name(archive: RemoteZip, folder: str) -> dict[str, str]:
    """Members by the last part of their names; of several, one in a folder with the name `folder`."""
    found: dict[str, str] = {}
    for member, info in archive.members().items():
        path = PurePosixPath(member)
        if not info.is_dir() and (path.name not in found or path.parent.name == folder):
            found[path.name] = member
    return found


def _try_addresses(download: Download, data_path: Path, fetch: Callable[[Address], object]) -> None:
    """Call `fetch` with one address after the other until one does not fail."""
    errors: list[tuple[Address, AddressError]] = []
    for address in download.addresses:
        try:
            fetch(address)
            return
        except AddressError as error:
            errors.append((address, error))
    denied = [
        error for address, error in errors if isinstance(error, AccessDeniedError) and address.url.startswith("hub:")
    ]
    if download.agreement and denied:
        raise UserError(_agreement(download, data_path, f"the hub denies access with your token: {denied[0]}"))
    tried = "; ".join(f"{_describe(address)}: {error}" for address, error in errors)
    raise UserError(f"{download.path} could not be downloaded. {tried}. {_by_hand(download, data_path)}")


def _refuse_early(download: Download, data_path: Path, options: FetchOptions, what: str = "") -> None:
    """Raise UserError if it is known without a request that nothing can be downloaded."""
    what = what or download.path
    if not download.addresses:
        page = f"Its terms are at {download.agreement}. " if download.agreement else ""
        raise UserError(f"{what}: missing, and must be downloaded by hand. {page}{_by_hand(download, data_path)}")
    if options.offline:
        where = f"It is published at {_describe(download.addresses[0])}. {_by_hand(download, data_path)}"
        raise UserError(f"{what}: missing, and this run is offline. {where}")
    if download.agreement and not _token():
        raise UserError(_agreement(download, data_path, "no token of the Hugging Face hub was found"))


def _by_hand(download: Download, data_path: Path) -> str:
    target = below(data_path, download.path)
    if not download.path.endswith("/"):
        return f"To continue without download: place the file at {target} and run again; it is then checked"
    listing = receipts.listing_file(data_path, download.path)
    unfinished = f", delete {listing}" if listing.is_file() else ""
    steps = f"place all of its files in {target}{unfinished} and run again; they are then checked"
    return f"To continue without download: {steps}"


def _agreement(download: Download, data_path: Path, reason: str) -> str:
    steps = (
        f"open {download.agreement} and accept with your own account",
        "create a token with read access at https://huggingface.co/settings/tokens",
        "run `hf auth login` (in older versions `huggingface-cli login`), or set HF_TOKEN to the token",
        "run again",
    )
    numbered = "; ".join(f"({number}) {step}" for number, step in enumerate(steps, 1))
    problem = f"{download.path}: its owner requires an agreement, and {reason}"
    return f"{problem}. {numbered}. {_by_hand(download, data_path)}"


def _token() -> str | None:
    from scripts.fetching import hub

    return hub.token()


def _describe(address: Address) -> str:
    return f"{address.url} ({address.member})" if address.member else address.url


def _locate(address: Address, options: FetchOptions) -> list[Location]:
    # Few sources need these libraries, and their import takes long.
    if address.url.startswith("hub:"):
        from scripts.fetching import hub

        return hub.locate(address.url, options)
    if address.url.startswith(("drive:", "drive-folder:")):
        from scripts.fetching import drive

        return [drive.locate(address.url, options)]
    return [Location(address.url, PurePosixPath(address.url.partition("?")[0]).name)]


def _only(locations: list[Location]) -> Location:
    if len(locations) != 1:
        raise AddressError(f"{len(locations)} files match it, but it should be one")
    return locations[0]


def _remote_zip(location: Location, data_path: Path, options: FetchOptions) -> RemoteZip:
    return RemoteZip(location.url, options, location.headers, receipts.archives(data_path))


def _one_file(address: Address, download: Download, data_path: Path, options: FetchOptions) -> None:
    expected = Expected(download.bytes, download.sha256, download.md5)
    target, name = below(data_path, download.path), _describe(address)
    rejections_file = receipts.rejections_file(data_path, download.path)
    if earlier := receipts.rejection(data_path, download.path, name, expected):
        raise AddressError(f"{earlier} (found in an earlier run; delete {rejections_file} to try again)")
    try:
        if address.member:
            fetched = _member(address, target, expected, data_path, options)
        else:
            location = _only(_locate(address, options))
            fetched = _whole_file(address, location, target, expected, options)
    except WrongContentError as error:
        receipts.add_rejection(data_path, download.path, name, expected, str(error))
        raise AddressError(f"{error} (recorded; delete {rejections_file} to try again)") from None
    receipts.write_receipt(data_path, download.path, name, fetched)
    receipts.delete_rejections(data_path, download.path)


def _whole_file(
    address: Address, location: Location, target: Path, expected: Expected, options: FetchOptions
) -> Fetched:
    expected = expected.merged(location.expected)
    return download_file(location.url, target, expected, options, location.headers, f"{address.url} {location.name}")


def _member(address: Address, target: Path, expected: Expected, data_path: Path, options: FetchOptions) -> Fetched:
    """Get a file from an archive: a single member of a remote zip, or from a downloaded archive, which is deleted."""
    location = _only(_locate(address, options))
    if not is_archive(location.name):
        raise AddressError(f"{location.name} is not a supported archive")
    if is_zip(location.name):
        archive = _remote_zip(location, data_path, options)
        return archive.fetch(archive.find(address.member), target, expected)
    # The archives of two sources may have the same name.
    local = receipts.archives(data_path) / f"{text_sha256(address.url)[:8]}-{location.name}"
    if not local.is_file():
        _whole_file(address, location, local, UNKNOWN, options)
    try:
        return extract_member(local, address.member, target, expected)
    finally:
        local.unlink()


class _Folder:
    """The files of an address with a pattern.

    A listing of them is written before the first is downloaded: files without a listing were placed by hand.
    """

    def __init__(self, download: Download, data_path: Path, options: FetchOptions) -> None:
        self._download, self._data_path, self._options = download, data_path, options
        self._path = below(data_path, download.path)

    def obtain(self) -> list[Path]:
        listed = self._listed()
        if listed is None:
            if placed_by_hand := self._placed_by_hand():
                return placed_by_hand
        elif all(path.is_file() for path in listed):
            return listed
        _refuse_early(self._download, self._data_path, self._options)
        _try_addresses(self._download, self._data_path, self._fetch)
        return self._listed() or []

    def _listed(self) -> list[Path] | None:
        names = receipts.listing(self._data_path, self._download.path)
        return None if names is None else [self._path / name for name in names]

    def _placed_by_hand(self) -> list[Path]:
        patterns = [PurePosixPath(address.url).name for address in self._download.addresses] or ["*"]
        files = self._path.iterdir() if self._path.is_dir() else ()
        return sorted(
            file
            for file in files
            if file.is_file() and any(fnmatch.fnmatchcase(file.name, pattern) for pattern in patterns)
        )

    def _fetch(self, address: Address) -> None:
        locations = _locate(address, self._options)
        receipts.write_listing(self._data_path, self._download.path, [location.name for location in locations])
        for location in locations:
            path = f"{self._download.path}{location.name}"
            target = below(self._data_path, path)
            if not target.is_file():
                fetched = _whole_file(address, location, target, UNKNOWN, self._options)
                receipts.write_receipt(self._data_path, path, f"{address.url} {location.name}", fetched)
