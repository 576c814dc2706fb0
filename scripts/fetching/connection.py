"""HTTP requests: which responses are accepted, and which errors are retried.

Errors that may be temporary (no connection, a timeout, an aborted transfer, status 429 and 5xx) are raised as
`TransientError` and retried by `retry`, after a delay that doubles or that the server asks for. Any other error is
final for the address.
"""

import email.utils
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import requests
import urllib3

from scripts.fetching.verification import UNKNOWN, AccessDeniedError, AddressError, Expected

Result = TypeVar("Result")

TRANSIENT_STATUS = frozenset({429, 500, 502, 503, 504})
_CHUNK = 1 << 20
_LONGEST_WAIT = 300.0
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class FetchOptions:
    """How to download."""

    offline: bool = False
    """Use no network: a missing file is an error."""
    retries: int = 5
    """Consecutive failures without progress after which an address is given up."""
    timeout: float = 60.0
    """Seconds without a response or a byte that count as a failure."""
    connections: int = 4
    """Parallel requests to one server, for small files."""
    backoff: float = 1.0
    """Seconds before the first retry; every further delay is twice as long."""
    label: str = ""
    """Beginning of progress lines; empty: the name of the file."""


DEFAULTS = FetchOptions()


@dataclass(frozen=True)
class Location:
    """The URL of a file, and what its host states about the file.

    Attributes:
        url: from which the bytes are downloaded.
        name: of the file.
        headers: to send with every request.
        expected: size and hash according to the host.
    """

    url: str
    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: Expected = UNKNOWN


class TransientError(Exception):
    """An error that may be temporary; `wait` is the delay that the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def new_session() -> requests.Session:
    """A session that requests uncompressed bodies, in which the offsets of ranges are those of the file."""
    session = requests.Session()
    session.headers.update({"User-Agent": "VisualChat", "Accept-Encoding": "identity"})
    return session


def retry(
    action: Callable[[], Result], options: FetchOptions, label: str, progress: Callable[[], int] = lambda: 0
) -> Result:
    """Repeat `action` until it does not raise `TransientError`.

    Args:
        action: to call.
        options: number and delay of retries.
        label: beginning of the line that is printed for a retry.
        progress: bytes received so far; if it has grown since the last failure, the count of failures starts again.

    Raises:
        AddressError: too many consecutive failures.
    """
    failures, farthest = 0, progress()
    while True:
        try:
            return action()
        except TransientError as error:
            if progress() > farthest:
                failures, farthest = 0, progress()
            failures += 1
            if failures > options.retries:
                raise AddressError(f"{error} (tried {failures} times)") from None
            delay = retry_delay(failures, error.wait, options)
            print(
                f"{label}: {error}; retry {failures} of {options.retries} in {delay:.3g} s", file=sys.stderr, flush=True
            )
            time.sleep(delay)


def retry_delay(failures: int, requested: float, options: FetchOptions) -> float:
    """Seconds to wait after the `failures`-th consecutive failure, if the server asks for `requested` seconds."""
    return min(max(options.backoff * 2 ** (failures - 1), requested), _LONGEST_WAIT)


def retry_after(value: str, now: float) -> float:
    """Seconds from `now` that a Retry-After header asks for (a number, or a date); 0 if it is invalid."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - now, 0.0)
    except ValueError:
        return 0.0


@contextmanager
def network(options: FetchOptions) -> Iterator[None]:
    """A block that makes requests: errors of the libraries become `TransientError` or `AddressError`."""
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.TooManyRedirects) as error:
        raise AddressError(f"it is not a usable URL: {error}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise AddressError("its certificate is not valid here") from None
        raise TransientError(_reason(error, reason, options)) from None


def _reason(error: Exception, text: str, options: FetchOptions) -> str:
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)) or "Read timed out" in text:
        return f"no data for {options.timeout:g} s"
    if "Failed to resolve" in text or "NameResolution" in text:
        return "its host name cannot be resolved"
    if "Connection refused" in text:
        return "no connection: refused"
    if "IncompleteRead" in text or "Connection aborted" in text or "Connection reset" in text:
        return "the connection was lost"
    return f"no connection: {text}"


@contextmanager
def get(
    session: requests.Session, url: str, options: FetchOptions, headers: Mapping[str, str] | None = None
) -> Iterator[requests.Response]:
    """The response to a GET request, with status 200 or 206 and its body not yet read.

    Raises:
        TransientError: the error may be temporary.
        AccessDeniedError, AddressError: it is final.
    """
    with network(options):
        response = session.get(url, headers=headers, stream=True, timeout=options.timeout)
        with response:
            status = f"{response.status_code} {response.reason or ''}".strip()
            if response.status_code in TRANSIENT_STATUS:
                raise TransientError(
                    f"it answers {status}", retry_after(response.headers.get("Retry-After", ""), time.time())
                )
            if response.status_code in (401, 403):
                raise AccessDeniedError(f"it answers {status}", response.status_code)
            if response.status_code not in (200, 206):
                raise AddressError(f"it answers {status}", response.status_code)
            yield response


def body(response: requests.Response) -> Iterator[bytes]:
    """The body in chunks, each as soon as it has arrived."""
    if is_encoded(response):
        yield from response.iter_content(_CHUNK)
        return
    while chunk := response.raw.read1(_CHUNK, decode_content=False):
        yield chunk


def is_encoded(response: requests.Response) -> bool:
    """Whether the body is compressed, although `new_session` asks for uncompressed bodies."""
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def content_range(response: requests.Response) -> tuple[int, int | None] | None:
    """First byte and total size in the Content-Range header of a partial response; a total of None is unknown."""
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (int(match[1]), None if match[3] == "*" else int(match[3])) if match else None
