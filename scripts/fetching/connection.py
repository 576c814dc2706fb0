"""Talking to servers: what is asked, which answers count, and which trouble is waited out.

Trouble that may pass (no connection, a stall, a cut line, status 429 and 5xx) is raised as `TransientError` and tried again by
`retry`, after a pause that doubles or that the server names. Any other refusal is final for its address.
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

from scripts.fetching.verification import UNKNOWN, AccessDenied, AddressError, Expected

Result = TypeVar("Result")

PASSING_STATUS = frozenset({429, 500, 502, 503, 504})
_CHUNK = 1 << 20
_LONGEST_WAIT = 300.0
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch."""

    offline: bool = False
    """Reach for nothing: say what is missing."""
    retries: int = 5
    """Failures in a row, without a byte gained, after which an address is given up."""
    timeout: float = 60.0
    """Seconds without an answer or a byte that count as a failure."""
    connections: int = 4
    """Small requests to one server at the same time."""
    backoff: float = 1.0
    """Seconds before the first retry; each further one waits twice as long."""
    label: str = ""
    """Beginning of progress lines; empty: the name of the file."""


DEFAULTS = FetchOptions()


@dataclass(frozen=True)
class Location:
    """Where the bytes of a file really are, and what its host says of them."""

    url: str
    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: Expected = UNKNOWN


class TransientError(Exception):
    """Trouble that may pass; `wait` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def new_session() -> requests.Session:
    """A session that asks for bytes as they are: offsets in a compressed body would mean nothing."""
    session = requests.Session()
    session.headers.update({"User-Agent": "VisualChat", "Accept-Encoding": "identity"})
    return session


def retry(
    action: Callable[[], Result], options: FetchOptions, label: str, gained: Callable[[], int] = lambda: 0
) -> Result:
    """Repeat `action` until it does not raise `TransientError`. Failures before which `gained` has grown start a new count.

    Raises:
        AddressError: too many failures in a row.
    """
    failures, farthest = 0, gained()
    while True:
        try:
            return action()
        except TransientError as trouble:
            if gained() > farthest:
                failures, farthest = 0, gained()
            failures += 1
            if failures > options.retries:
                raise AddressError(f"{trouble} (tried {failures} times)") from None
            wait = seconds_to_wait(failures, trouble.wait, options)
            retry = f"retry {failures} of {options.retries} in {wait:.3g} s"
            print(f"{label}: {trouble}; {retry}", file=sys.stderr, flush=True)
            time.sleep(wait)


def seconds_to_wait(failures: int, asked: float, options: FetchOptions) -> float:
    """The pause after the `failures`-th failure in a row, when the server asks for `asked` seconds."""
    return min(max(options.backoff * 2 ** (failures - 1), asked), _LONGEST_WAIT)


def retry_after(value: str, now: float) -> float:
    """Seconds from `now` that a Retry-After header asks for: a number, or a date. Nonsense asks for none."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - now, 0.0)
    except ValueError:
        return 0.0


@contextmanager
def network(options: FetchOptions) -> Iterator[None]:
    """A block that talks to a server: errors on the way become `TransientError` or `AddressError`."""
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.TooManyRedirects) as error:
        raise AddressError(f"it leads nowhere: {error}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = str(error)
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            raise AddressError("its certificate is not valid here") from None
        raise TransientError(_reason(error, reason, options)) from None


def _reason(error: Exception, text: str, options: FetchOptions) -> str:
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)) or "Read timed out" in text:
        return f"nothing came for {options.timeout:g} s"
    if "Failed to resolve" in text or "NameResolution" in text:
        return "its host is not known here"
    if "Connection refused" in text:
        return "no connection: refused"
    if "IncompleteRead" in text or "Connection aborted" in text or "Connection reset" in text:
        return "the line was cut"
    return f"no connection: {text}"


@contextmanager
def answer(
    session: requests.Session, url: str, options: FetchOptions, headers: Mapping[str, str] | None = None
) -> Iterator[requests.Response]:
    """The response to a GET, with status 200 or 206 and its body still to be read.

    Raises:
        TransientError: the trouble may pass.
        AccessDenied, AddressError: it will not.
    """
    with network(options):
        response = session.get(url, headers=headers, stream=True, timeout=options.timeout)
        with response:
            status = f"{response.status_code} {response.reason or ''}".strip()
            if response.status_code in PASSING_STATUS:
                raise TransientError(
                    f"it answers {status}", retry_after(response.headers.get("Retry-After", ""), time.time())
                )
            if response.status_code in (401, 403):
                raise AccessDenied(f"it answers {status}", response.status_code)
            if response.status_code not in (200, 206):
                raise AddressError(f"it answers {status}", response.status_code)
            yield response


def body(response: requests.Response) -> Iterator[bytes]:
    """The body in pieces, each as soon as it is there."""
    if is_encoded(response):
        yield from response.iter_content(_CHUNK)
        return
    while piece := response.raw.read1(_CHUNK, decode_content=False):
        yield piece


def is_encoded(response: requests.Response) -> bool:
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def content_range(response: requests.Response) -> tuple[int, int | None] | None:
    """First byte and total size that a partial answer names."""
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (int(match[1]), None if match[3] == "*" else int(match[3])) if match else None
