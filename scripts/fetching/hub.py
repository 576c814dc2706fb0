"""Files of datasets on the Hugging Face hub: names, URLs, sizes and hashes.

`huggingface_hub` handles the endpoint (HF_ENDPOINT), the token (HF_TOKEN, or the stored login) and the contents of a
repository. The bytes are downloaded by `download`, which can resume the file of a killed run; the library starts again.
"""

import fnmatch
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import httpx2
from huggingface_hub import DatasetInfo, HfApi, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers

from scripts.fetching.connection import TRANSIENT_STATUS, FetchOptions, Location, TransientError, retry
from scripts.fetching.verification import AccessDeniedError, AddressError, Expected

_ADDRESS = re.compile(r"hub://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


def token() -> str | None:
    """The user's token, if there is one."""
    return get_token()


def locate(url: str, options: FetchOptions) -> list[Location]:
    """The locations of the files that match `hub://datasets/OWNER/NAME[@REVISION]/FILE`, sorted by name.

    Only the last part of FILE may be a pattern, so all files are in one folder. All are of the same commit.

    Raises:
        AccessDeniedError, AddressError: the repository, or the file in it, is not available.
    """
    match = _ADDRESS.fullmatch(url)
    if not match:
        raise AddressError("it should be hub://datasets/OWNER/NAME[@REVISION]/FILE")
    repository, revision, file_pattern = match.groups()
    endpoint, secret = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, token() or False
    label = options.label or repository
    info = retry(lambda: _dataset_info(repository, revision, endpoint, secret, options), options, label)
    files = [file for file in info.siblings or () if _matches(file.rfilename, file_pattern)]
    if not files:
        raise AddressError(f"the repository contains no {file_pattern}")
    headers = build_hf_headers(token=secret, library_name="visualchat")
    commit = info.sha or revision
    return [
        Location(
            hf_hub_url(repository, file.rfilename, repo_type="dataset", revision=commit, endpoint=endpoint),
            PurePosixPath(file.rfilename).name,
            headers,
            Expected(file.size, file.lfs.sha256 if file.lfs else None),
        )
        for file in sorted(files, key=lambda file: file.rfilename)
    ]


def _matches(path: str, file_pattern: str) -> bool:
    folder, _, name = path.rpartition("/")
    pattern_folder, _, name_pattern = file_pattern.rpartition("/")
    return path == file_pattern or (folder == pattern_folder and fnmatch.fnmatchcase(name, name_pattern))


def _dataset_info(
    repository: str, revision: str | None, endpoint: str | None, secret: str | bool, options: FetchOptions
) -> DatasetInfo:
    with _hub_errors(options):
        return HfApi(endpoint=endpoint).dataset_info(
            repository, revision=revision, files_metadata=True, token=secret, timeout=options.timeout
        )


@contextmanager
def _hub_errors(options: FetchOptions) -> Iterator[None]:
    """A block that makes requests to the hub: the errors of its library become those of `connection`."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise AddressError("the hub's library is offline: unset HF_HUB_OFFLINE") from None
    except HFValidationError as error:
        raise AddressError(str(error)) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in TRANSIENT_STATUS:
            raise TransientError(f"the hub answers {status}") from None
        if status in (401, 403):
            reason = "there is no such repository, or you have no access; an expired token also has this effect"
            raise AccessDeniedError(f"the hub answers {status}: {reason}", status) from None
        raise AddressError(f"the hub answers {status}: no such repository or revision", status) from None
    except httpx2.TimeoutException:
        raise TransientError(f"no data from the hub for {options.timeout:g} s") from None
    except httpx2.HTTPError as error:
        raise TransientError(f"no connection to the hub: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise AddressError("the server is not a Hugging Face hub: check HF_ENDPOINT and your proxy") from None
