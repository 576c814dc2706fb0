"""Files on Google Drive: from an id to the URL of the bytes.

Drive has no direct URLs: instead of a large file it sends a page that asks for confirmation, or that reports an
exceeded quota. `gdown` parses these pages and the listings of folders; the bytes are downloaded by `download`.
"""

import re
from typing import Any

import gdown
from gdown.download import get_url_from_gdrive_confirmation
from gdown.exceptions import DownloadError

from scripts.fetching.connection import FetchOptions, Location, get, network, new_session, retry
from scripts.fetching.verification import AddressError

_DRIVE = "https://drive.google.com"
_LARGEST_PAGE = 1 << 20


def locate(url: str, options: FetchOptions) -> Location:
    """The location of `drive://ID` or `drive-folder://ID/FILE`.

    Raises:
        AddressError: Drive does not provide the file; the message has the reason and the page to open.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "drive":
        return Location(_address(rest, options), rest)
    folder, _, path = rest.partition("/")
    return Location(_address(_in_folder(folder, path, options), options), path.rsplit("/", 1)[-1])


def _in_folder(folder: str, path: str, options: FetchOptions) -> str:
    """The id of the file at `path` in a folder."""
    page = f"{_DRIVE}/drive/folders/{folder}"

    def list_folder() -> list[Any]:
        with network(options):
            return gdown.download_folder(
                id=folder, skip_download=True, quiet=True, use_cookies=False, timeout=options.timeout
            )

    try:
        files = retry(list_folder, options, options.label or path)
    except DownloadError as error:
        raise AddressError(f"Google Drive does not list the folder ({_one_line(str(error))}): open {page}") from None
    for file in files:
        if file.path == path:
            return file.id
    raise AddressError(f"the folder on Google Drive contains no {path}: open {page}")


def _address(file_id: str, options: FetchOptions) -> str:
    url = f"{_DRIVE}/uc?export=download&id={file_id}"
    view = f"{_DRIVE}/file/d/{file_id}/view"

    def confirmation_page() -> str | None:
        with new_session() as session, get(session, url, options) as response:
            if "Content-Disposition" in response.headers:
                return None
            return response.raw.read(_LARGEST_PAGE, decode_content=True).decode("utf-8", "replace")

    page = retry(confirmation_page, options, options.label or file_id)
    if page is None:
        return url
    try:
        return get_url_from_gdrive_confirmation(page)
    except DownloadError as error:
        reason = _one_line(re.sub(r"<[^>]*>", "", str(error)))
    except (AssertionError, KeyError):
        reason = "the format of its page has changed"
    raise AddressError(f"Google Drive does not provide the file ({reason}): download it at {view} with a browser")


def _one_line(text: str) -> str:
    return " ".join(text.split()).split(" Check FAQ")[0].rstrip(".")
