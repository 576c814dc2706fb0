"""Files of data sets on the Hugging Face hub: which there are, where they are, what is known of them.

The hub's own library knows the endpoint (HF_ENDPOINT), the token (HF_TOKEN, or the stored login) and what a repository
holds. The bytes come through `download`, which continues a file where a killed run left it; the library starts again.
"""

import fnmatch
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import httpx2
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers

from scripts.fetching.connection import PASSING_STATUS, FetchOptions, Location, TransientError, retry
from scripts.fetching.verification import AccessDenied, AddressError, Expected

_ADDRESS = re.compile(r"hub://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


def token() -> str | None:
    """The user's token, if there is one."""
    return get_token()


def locate(url: str, options: FetchOptions) -> list[Location]:
    """Where the files are that `hub://datasets/OWNER/NAME[@REVISION]/FILE` means; FILE may be a pattern.

    All of them are of one commit. A pattern stands in the last part of FILE only: its files share one folder.

    Raises:
        AccessDenied, AddressError: the repository, or the file in it, is not to be had.
    """
    match = _ADDRESS.fullmatch(url)
    if not match:
        raise AddressError("it should be hub://datasets/OWNER/NAME[@REVISION]/FILE")
    repository, revision, wanted = match.groups()
    endpoint, secret = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, token() or False
    label = options.label or repository
    info = retry(lambda: _dataset(repository, revision, endpoint, secret, options), options, label)
    files = [file for file in info.siblings or () if _is_meant(file.rfilename, wanted)]
    if not files:
        raise AddressError(f"the repository holds no {wanted}")
    headers = build_hf_headers(token=secret, library_name="visualchat")
    where = {"repo_type": "dataset", "revision": info.sha or revision, "endpoint": endpoint}
    return [
        Location(
            hf_hub_url(repository, file.rfilename, **where),
            PurePosixPath(file.rfilename).name,
            headers,
            Expected(file.size, file.lfs.sha256 if file.lfs else None),
        )
        for file in sorted(files, key=lambda file: file.rfilename)
    ]


def _is_meant(path: str, wanted: str) -> bool:
    folder, _, name = path.rpartition("/")
    wanted_folder, _, pattern = wanted.rpartition("/")
    return path == wanted or (folder == wanted_folder and fnmatch.fnmatchcase(name, pattern))


def _dataset(repository: str, revision: str | None, endpoint: str | None, secret: str | bool, options: FetchOptions):
    with _hub(options):
        return HfApi(endpoint=endpoint).dataset_info(
            repository, revision=revision, files_metadata=True, token=secret, timeout=options.timeout
        )


@contextmanager
def _hub(options: FetchOptions) -> Iterator[None]:
    """A block that asks the hub: its errors become ours."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise AddressError("the hub's library is offline: unset HF_HUB_OFFLINE") from None
    except HFValidationError as error:
        raise AddressError(str(error)) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in PASSING_STATUS:
            raise TransientError(f"the hub answers {status}") from None
        if status in (401, 403):
            reason = "there is no such repository, or not for you; a stored token that has expired does this too"
            raise AccessDenied(f"the hub answers {status}: {reason}", status) from None
        raise AddressError(f"the hub answers {status}: no such repository or revision", status) from None
    except httpx2.TimeoutException:
        raise TransientError(f"nothing came from the hub for {options.timeout:g} s") from None
    except httpx2.HTTPError as error:
        raise TransientError(f"no connection to the hub: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise AddressError("what answers is not a Hugging Face hub: look at HF_ENDPOINT and at your proxy") from None
