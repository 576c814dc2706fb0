"""Downloading one file over HTTP, with resumption, and verification before the file gets its name.

The bytes are written to `<name>.part`; `<name>.part.json` records the version of the file to which they belong (ETag or
Last-Modified, and size). A later run requests the rest with `Range` and `If-Range`: a server whose file has changed, or
that does not support ranges, sends the whole file, and the part starts again.
"""

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import requests

from scripts.common.errors import UserError
from scripts.common.files import read_json, write_json
from scripts.common.progress import Progress
from scripts.fetching.connection import (
    DEFAULTS,
    FetchOptions,
    TransientError,
    body,
    content_range,
    get,
    is_encoded,
    new_session,
    retry,
)
from scripts.fetching.verification import (
    UNKNOWN,
    AddressError,
    Expected,
    Fetched,
    Verifier,
    WrongContentError,
    disk_errors,
)

_CHUNK = 1 << 20
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype\s+html|<html)", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>([^<]{1,200})", re.IGNORECASE)


class _Version(NamedTuple):
    """The version of the file to which a part belongs; `source` identifies where it came from."""

    source: str = ""
    etag: str = ""
    modified: str = ""
    total: int | None = None

    def validator(self, source: str) -> str:
        """The value of If-Range for the server of `source`; "": none, the download has to start again."""
        # A strong ETag identifies the content, so mirrors may share it; a date is valid for one server only.
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified if self.source == source else ""


class _Part:
    """The bytes of the file `target` that have arrived so far; one process at a time may lock it.

    Attributes:
        target: final path of the file.
        expected: its size and hashes.
        source: identifies where it comes from.
        version: of the file to which the bytes belong.
        from_earlier_run: whether some of the bytes were downloaded by an earlier run.
    """

    def __init__(self, target: Path, expected: Expected, source: str) -> None:
        self.target, self.expected, self.source = target, expected, source
        self._path = target.with_name(f"{target.name}.part")
        self._version_file = target.with_name(f"{target.name}.part.json")
        self.from_earlier_run = False

    def __enter__(self) -> "_Part":
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+b", buffering=0)
        if not self._lock():
            self._file.close()
            raise UserError(f"{self._path} is being written by another process: wait for it, or end it")
        self._load()
        return self

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # Some network file systems have no locks.
            return True
        # Another process may have renamed the file between our opening and locking it.
        return self._path.exists() and os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))

    def __exit__(self, *error: object) -> None:
        if not self.size:
            self.discard()
        self._file.close()

    def _load(self) -> None:
        self._verifier, self.version = Verifier(self.expected), _Version()
        self._file.seek(0)
        try:
            self.version = _Version(**read_json(self._version_file))
            while chunk := self._file.read(_CHUNK):
                self._verifier.update(chunk)
        except (UserError, TypeError):
            # Its version is unknown, or it is longer than the published file.
            self.empty()
        self.from_earlier_run = self.size > 0

    @property
    def size(self) -> int:
        return self._verifier.bytes

    @property
    def complete(self) -> bool:
        return self.size > 0 and self.size == self.version.total

    def empty(self) -> None:
        """Start again from nothing."""
        with disk_errors(self._path):
            self._file.truncate(0)
        self._verifier, self.version, self.from_earlier_run = Verifier(self.expected), _Version(), False

    def set_version(self, version: _Version) -> None:
        """Record to which version the next bytes belong."""
        self.version = version
        with disk_errors(self._version_file):
            write_json(self._version_file, version._asdict())

    def write(self, chunk: bytes) -> None:
        self._verifier.update(chunk)
        with disk_errors(self._path):
            view = memoryview(chunk)
            while view:
                view = view[self._file.write(view) :]

    def finish(self) -> Fetched:
        """Verify the file and give it its final name. Raises WrongContentError."""
        fetched = self._verifier.finish()
        with disk_errors(self.target):
            os.fsync(self._file.fileno())
            os.replace(self._path, self.target)
        self._version_file.unlink(missing_ok=True)
        return fetched

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)


def download_file(
    url: str,
    target: Path,
    expected: Expected = UNKNOWN,
    options: FetchOptions = DEFAULTS,
    headers: Mapping[str, str] | None = None,
    source: str = "",
) -> Fetched:
    """Download `url` to `target`, which appears when it is complete and verified.

    Args:
        url: of the file.
        target: path to write.
        expected: size and hashes of the file.
        options: retries and timeouts.
        headers: sent with every request to the host of `url`, and to no other.
        source: identifies the file where `url` differs each time; empty: `url`.

    Raises:
        AccessDeniedError, WrongContentError, AddressError: the file cannot be downloaded from this address.
        UserError: the disk is full, or another process downloads the same file.
    """
    label = options.label or target.name
    with _Part(target, expected, source or url) as part, new_session() as session:
        progress = Progress(label, part.version.total, part.size, unit="B", scale=True)

        def resume() -> None:
            _resume(part, session, url, headers or {}, options, progress)

        while True:
            retry(resume, options, label, lambda: part.size)
            from_earlier_run = part.from_earlier_run
            try:
                fetched = part.finish()
            except WrongContentError:
                part.empty()
                if not from_earlier_run:
                    raise
                # The bytes of the earlier run may be the wrong ones: download the whole file once more.
                print(f"{label}: the partial file is damaged, starting again", file=sys.stderr, flush=True)
            else:
                progress.close()
                return fetched


def _resume(
    part: _Part,
    session: requests.Session,
    url: str,
    headers: Mapping[str, str],
    options: FetchOptions,
    progress: Progress,
) -> None:
    """Download the missing rest of `part`. Raises TransientError if the connection ends too early."""
    if part.complete:
        return
    validator = part.version.validator(part.source)
    if part.size and not validator:
        part.empty()
    range_headers = {"Range": f"bytes={part.size}-", "If-Range": validator} if part.size else {}
    try:
        with get(session, url, options, {**headers, **range_headers}) as response:
            _refuse_html(response, part.target)
            _begin(part, response)
            progress.begin(part.version.total, part.size)
            for chunk in body(response):
                if not part.size:
                    _refuse_html(response, part.target, chunk)
                part.write(chunk)
                progress.advance(len(chunk))
    except WrongContentError:
        part.empty()
        raise
    except AddressError as error:
        if error.status != 416 or not part.size:
            raise
        part.empty()
        raise TransientError("it has no such part of the file") from None
    if part.version.total is not None and part.size < part.version.total:
        raise TransientError("the connection was lost")


def _begin(part: _Part, response: requests.Response) -> None:
    """Prepare `part` for the body of `response`: keep it, or empty it if the server sends the whole file."""
    etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    if response.status_code == 206:
        version = part.version
        same_version = content_range(response) == (part.size, version.total) and (not etag or etag == version.etag)
        if not same_version or not part.size:
            part.empty()
            raise TransientError("it answers with another range than was requested")
    elif is_encoded(response):
        # The size of the decoded file is unknown, and ranges would be offsets into the encoded one.
        part.empty()
        part.set_version(_Version(part.source))
    else:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        published = part.expected.bytes
        if total is not None and published is not None and total != published:
            raise AddressError(f"it offers {total:,} bytes, but the published file has {published:,}")
        part.empty()
        part.set_version(_Version(part.source, etag, modified, total))
    missing, free = (part.version.total or 0) - part.size, shutil.disk_usage(part.target.parent).free
    if missing > free:
        sizes = f"{missing / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are free there"
        raise UserError(f"{part.target} needs {sizes}: free some space, then run again")


def _refuse_html(response: requests.Response, target: Path, start: bytes = b"") -> None:
    """Refuse a web page that is sent instead of a file; `start` is the beginning of the body, if already read."""
    is_html = response.headers.get("Content-Type", "").lower().startswith("text/html") or _HTML.match(start)
    if is_html and target.suffix.lower() not in (".html", ".htm"):
        start = start or next(body(response), b"")
        match = _TITLE.search(start)
        title = f" ({' '.join(match[1].decode('utf-8', 'replace').split())})" if match else ""
        raise AddressError(f"it sends a web page{title} instead of the file")
