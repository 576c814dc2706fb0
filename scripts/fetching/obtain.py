"""Make published files exist below the data path: from the first of their addresses that gives the right file.

A file that is there is never touched or judged: what the user placed by hand may be a smaller or a newer copy, and
validation says what it is worth. What we fetch must be what the registry knows of it. Sources that ask for an
agreement, or that a person has to get, end with the steps to take before a byte is fetched.
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
from scripts.fetching.verification import UNKNOWN, AccessDenied, AddressError, Expected, Fetched, WrongContent

_LARGEST_IMAGE = 1 << 28
_LONGEST_NAME = 200
"""File systems allow 255 bytes; a file on its way has a longer name than it has in the end."""


def obtain(download: Download, data_path: Path, options: FetchOptions = DEFAULTS) -> list[Path]:
    """Make the file, or the files of the folder, that `download` describes exist below `data_path`; return them.

    A folder whose files were placed by hand counts as complete, whatever it lacks.

    Raises:
        UserError: it cannot be had; the message says what every address answered and what a person can do.
    """
    if download.path.endswith("/"):
        return _Folder(download, data_path, options).obtain()
    place = below(data_path, download.path)
    if not place.is_file():
        _refuse_early(download, data_path, options)
        _first_that_gives(download, data_path, lambda address: _one_file(address, download, data_path, options))
    return [place]


def obtain_images(
    download: Download, data_path: Path, folder: str, names: Collection[str], options: FetchOptions = DEFAULTS
) -> list[str]:
    """Fetch single images out of a remote .zip into `folder`, which is then marked as partial.

    A folder that holds files of the user's own is not marked: to the user it is what it was.

    Args:
        download: the archive; it is not fetched as a whole.
        folder: below `data_path`, ending in "/"; as the registry names the folder that the archive stands for.
        names: of files in it. They come from data: one that is no plain name is not in any archive.

    Returns:
        The names that the archive lacks, sorted.

    Raises:
        UserError: the archive cannot be had.
    """
    target = below(data_path, folder)
    plain = {name for name in names if _is_plain(name)}
    missing = sorted(name for name in plain if not (target / name).is_file())
    lacking = set(names) - plain
    if missing:
        _refuse_early(download, data_path, options, f"{len(missing)} images of {folder}")

        def fetch(address: Address) -> None:
            lacking.update(_images(address, data_path, folder, missing, options))

        _first_that_gives(download, data_path, fetch)
    return sorted(lacking)


def _images(address: Address, data_path: Path, folder: str, missing: list[str], options: FetchOptions) -> list[str]:
    """Fetch what one archive holds of `missing`; return the rest."""
    target = below(data_path, folder)
    archive = _remote_zip(_only(_locate(address, options)), data_path, options)
    there = _by_base_name(archive, target.name)
    found = {there[name]: target / name for name in missing if name in there}
    if found and (receipts.is_partial(data_path, folder) or not target.is_dir() or not any(target.iterdir())):
        receipts.mark_partial(data_path, folder)
    archive.extract(found, _LARGEST_IMAGE, options.label or f"images of {folder}")
    return [name for name in missing if name not in there]


def _is_plain(name: str) -> bool:
    """Whether `name` can be that of a file in a folder."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        return False
    return 0 < length <= _LONGEST_NAME and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def _by_base_name(archive: RemoteZip, folder: str) -> dict[str, str]:
    """Members by the last part of their names; of several, one in a folder of the same name as ours."""
    found: dict[str, str] = {}
    for member, info in archive.members().items():
        path = PurePosixPath(member)
        if not info.is_dir() and (path.name not in found or path.parent.name == folder):
            found[path.name] = member
    return found


def _first_that_gives(download: Download, data_path: Path, fetch: Callable[[Address], object]) -> None:
    """Call `fetch` with one address after the other until one does not fail."""
    answers: list[tuple[Address, AddressError]] = []
    for address in download.addresses:
        try:
            fetch(address)
            return
        except AddressError as error:
            answers.append((address, error))
    denied = [error for address, error in answers if isinstance(error, AccessDenied) and address.url.startswith("hub:")]
    if download.agreement and denied:
        raise UserError(_agreement(download, data_path, f"the hub does not open it for your token: {denied[0]}"))
    tried = "; ".join(f"{_known_by(address)}: {error}" for address, error in answers)
    raise UserError(f"{download.path} could not be fetched. {tried}. {_by_hand(download, data_path)}")


def _refuse_early(download: Download, data_path: Path, options: FetchOptions, what: str = "") -> None:
    """Raise UserError where it is known beforehand that nothing can be fetched."""
    what = what or download.path
    if not download.addresses:
        page = f"Its terms are at {download.agreement}. " if download.agreement else ""
        raise UserError(f"{what}: not there, and only a person can get it. {page}{_by_hand(download, data_path)}")
    if options.offline:
        where = f"It is published at {_known_by(download.addresses[0])}. {_by_hand(download, data_path)}"
        raise UserError(f"{what}: not there, and this run is offline. {where}")
    if download.agreement and not _token():
        raise UserError(_agreement(download, data_path, "no token of the Hugging Face hub was found"))


def _by_hand(download: Download, data_path: Path) -> str:
    place = below(data_path, download.path)
    if not download.path.endswith("/"):
        return f"To go on without: place the file at {place} and run again; it is then checked"
    note = receipts.listing_file(data_path, download.path)
    unfinished = f", delete {note}" if note.is_file() else ""
    return f"To go on without: place all of its files in {place}{unfinished} and run again; they are then checked"


def _agreement(download: Download, data_path: Path, reason: str) -> str:
    steps = (
        f"open {download.agreement} and accept with your own account",
        "create a token with read access at https://huggingface.co/settings/tokens",
        "run `hf auth login` (in older versions `huggingface-cli login`), or set HF_TOKEN to the token",
        "run again",
    )
    numbered = "; ".join(f"({number}) {step}" for number, step in enumerate(steps, 1))
    asked = f"{download.path}: its owner asks for an agreement, and {reason}"
    return f"{asked}. {numbered}. {_by_hand(download, data_path)}"


def _token() -> str | None:
    from scripts.fetching import hub

    return hub.token()


def _known_by(address: Address) -> str:
    return f"{address.url} ({address.member})" if address.member else address.url


def _locate(address: Address, options: FetchOptions) -> list[Location]:
    # Few sources need these libraries, and importing them takes a while.
    if address.url.startswith("hub:"):
        from scripts.fetching import hub

        return hub.locate(address.url, options)
    if address.url.startswith(("drive:", "drive-folder:")):
        from scripts.fetching import drive

        return [drive.locate(address.url, options)]
    return [Location(address.url, PurePosixPath(address.url.partition("?")[0]).name)]


def _only(locations: list[Location]) -> Location:
    if len(locations) != 1:
        raise AddressError(f"{len(locations)} files match it, and one is wanted")
    return locations[0]


def _remote_zip(location: Location, data_path: Path, options: FetchOptions) -> RemoteZip:
    return RemoteZip(location.url, options, location.headers, receipts.archives(data_path))


def _one_file(address: Address, download: Download, data_path: Path, options: FetchOptions) -> None:
    expected = Expected(download.bytes, download.sha256, download.md5)
    place, known_by = below(data_path, download.path), _known_by(address)
    note = receipts.refusals_file(data_path, download.path)
    if earlier := receipts.refusal(data_path, download.path, known_by, expected):
        raise AddressError(f"{earlier} (found out earlier; delete {note} to try again)")
    try:
        if address.member:
            fetched = _member(address, place, expected, data_path, options)
        else:
            location = _only(_locate(address, options))
            fetched = _whole(address, location, place, expected, options)
    except WrongContent as error:
        receipts.remember_refusal(data_path, download.path, known_by, expected, str(error))
        raise AddressError(f"{error} (remembered; delete {note} to try again)") from None
    receipts.write_receipt(data_path, download.path, known_by, fetched)
    receipts.forget_refusals(data_path, download.path)


def _whole(address: Address, location: Location, place: Path, expected: Expected, options: FetchOptions) -> Fetched:
    expected = expected.joined(location.expected)
    return download_file(location.url, place, expected, options, location.headers, f"{address.url} {location.name}")


def _member(address: Address, place: Path, expected: Expected, data_path: Path, options: FetchOptions) -> Fetched:
    """A file out of an archive: a zip stays where it is, any other is fetched, unpacked and removed."""
    location = _only(_locate(address, options))
    if not is_archive(location.name):
        raise AddressError(f"{location.name} is no archive that can be read here")
    if is_zip(location.name):
        archive = _remote_zip(location, data_path, options)
        return archive.fetch(archive.find(address.member), place, expected)
    # Two sources may call their archives alike.
    local = receipts.archives(data_path) / f"{text_sha256(address.url)[:8]}-{location.name}"
    if not local.is_file():
        _whole(address, location, local, UNKNOWN, options)
    try:
        return extract_member(local, address.member, place, expected)
    finally:
        local.unlink()


class _Folder:
    """The files of an address with a pattern.

    A listing of them is remembered before the first is fetched: files without one were placed by hand.
    """

    def __init__(self, download: Download, data_path: Path, options: FetchOptions):
        self._download, self._data_path, self._options = download, data_path, options
        self._place = below(data_path, download.path)

    def obtain(self) -> list[Path]:
        listed = self._listed()
        if listed is None:
            if there := self._by_hand():
                return there
        elif all(place.is_file() for place in listed):
            return listed
        _refuse_early(self._download, self._data_path, self._options)
        _first_that_gives(self._download, self._data_path, self._fetch)
        return self._listed()

    def _listed(self) -> list[Path] | None:
        names = receipts.listing(self._data_path, self._download.path)
        return None if names is None else [self._place / name for name in names]

    def _by_hand(self) -> list[Path]:
        patterns = [PurePosixPath(address.url).name for address in self._download.addresses] or ["*"]
        files = self._place.iterdir() if self._place.is_dir() else ()
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
            place = below(self._data_path, path)
            if not place.is_file():
                fetched = _whole(address, location, place, UNKNOWN, self._options)
                receipts.write_receipt(self._data_path, path, f"{address.url} {location.name}", fetched)
