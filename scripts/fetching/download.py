"""One file over HTTP: continued where it was cut, checked before it has its name.

The bytes arrive in `<name>.part`; `<name>.part.json` says which version of the file they belong to (ETag or
Last-Modified, and size). A later run asks for the rest with `Range` and `If-Range`: a server whose file has changed, or
that knows no ranges, answers with the whole file, and the part starts again.
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
    answer,
    body,
    content_range,
    is_encoded,
    new_session,
    retry,
)
from scripts.fetching.verification import UNKNOWN, AddressError, Check, Expected, Fetched, WrongContent, writing

_CHUNK = 1 << 20
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype\s+html|<html)", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>([^<]{1,200})", re.IGNORECASE)


class _Version(NamedTuple):
    """Which file a part belongs to."""

    source: str = ""
    etag: str = ""
    modified: str = ""
    total: int | None = None

    def validator(self, source: str) -> str:
        """What proves to the server of `source` that the part is of its file; empty: nothing does."""
        # A strong ETag is made of the content, so mirrors may share it; a date means something to one server only.
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified if self.source == source else ""


class _Part:
    """The bytes of `place` that have arrived so far; one process at a time may hold it."""

    def __init__(self, place: Path, expected: Expected, source: str):
        self.place, self.expected, self.source = place, expected, source
        self._path = place.with_name(f"{place.name}.part")
        self._notes = place.with_name(f"{place.name}.part.json")
        self.inherited = False
        """Whether some of the bytes come from an earlier run."""

    def __enter__(self) -> "_Part":
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+b", buffering=0)
        if not self._hold():
            self._file.close()
            raise UserError(f"{self._path} is being written by another process: wait for it, or end it")
        self._load()
        return self

    def _hold(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # Some network file systems have no locks.
            return True
        # The other process may have given the file its final name between our opening and locking it.
        return self._path.exists() and os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))

    def __exit__(self, *error) -> None:
        if not self.size:
            self.discard()
        self._file.close()

    def _load(self) -> None:
        self._check, self.version = Check(self.expected), _Version()
        self._file.seek(0)
        try:
            self.version = _Version(**read_json(self._notes))
            while piece := self._file.read(_CHUNK):
                self._check.update(piece)
        except (UserError, TypeError):
            # Without its notes, or longer than the file: of no use.
            self.empty()
        self.inherited = self.size > 0

    @property
    def size(self) -> int:
        return self._check.bytes

    @property
    def complete(self) -> bool:
        return self.size > 0 and self.size == self.version.total

    def empty(self) -> None:
        """Start again from nothing."""
        with writing(self._path):
            self._file.truncate(0)
        self._check, self.version, self.inherited = Check(self.expected), _Version(), False

    def note(self, version: _Version) -> None:
        """Say which version the bytes to come belong to."""
        self.version = version
        with writing(self._notes):
            write_json(self._notes, version._asdict())

    def write(self, piece: bytes) -> None:
        self._check.update(piece)
        with writing(self._path):
            view = memoryview(piece)
            while view:
                view = view[self._file.write(view) :]

    def keep(self) -> Fetched:
        """Give the file its name. Raises WrongContent."""
        fetched = self._check.finish()
        with writing(self.place):
            os.fsync(self._file.fileno())
            os.replace(self._path, self.place)
        self._notes.unlink(missing_ok=True)
        return fetched

    def discard(self) -> None:
        self._path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)


def download_file(
    url: str,
    place: Path,
    expected: Expected = UNKNOWN,
    options: FetchOptions = DEFAULTS,
    headers: Mapping[str, str] | None = None,
    source: str = "",
) -> Fetched:
    """Fetch `url` to `place`, which appears when it is whole and right.

    Args:
        headers: sent with every request to the host of `url`, and to no other.
        source: what the file is known by, where `url` is made anew each time.

    Raises:
        AccessDenied, WrongContent, AddressError: the address does not give the file.
        UserError: the disk is full, or another process fetches the same file.
    """
    label = options.label or place.name
    with _Part(place, expected, source or url) as part, new_session() as session:
        progress = Progress(label, part.version.total, part.size, unit="B", scale=True)

        def carry_on() -> None:
            _carry_on(part, session, url, headers or {}, options, progress)

        while True:
            retry(carry_on, options, label, lambda: part.size)
            inherited = part.inherited
            try:
                fetched = part.keep()
            except WrongContent:
                part.empty()
                if not inherited:
                    raise
                # The fault may lie in what an earlier run left; the server deserves one whole try.
                print(f"{label}: the part that was there is damaged, starting again", file=sys.stderr, flush=True)
            else:
                progress.close()
                return fetched


def _carry_on(
    part: _Part,
    session: requests.Session,
    url: str,
    headers: Mapping[str, str],
    options: FetchOptions,
    progress: Progress,
) -> None:
    """Add to `part` what it lacks. Raises TransientError where the line ends before that."""
    if part.complete:
        return
    validator = part.version.validator(part.source)
    if part.size and not validator:
        part.empty()
    wanted = {"Range": f"bytes={part.size}-", "If-Range": validator} if part.size else {}
    try:
        with answer(session, url, options, {**headers, **wanted}) as response:
            _refuse_page(response, part.place)
            _begin(part, response)
            progress.begin(part.version.total, part.size)
            for piece in body(response):
                if not part.size:
                    _refuse_page(response, part.place, piece)
                part.write(piece)
                progress.advance(len(piece))
    except WrongContent:
        part.empty()
        raise
    except AddressError as error:
        if error.status != 416 or not part.size:
            raise
        part.empty()
        raise TransientError("it has no such part of the file") from None
    if part.version.total is not None and part.size < part.version.total:
        raise TransientError("the line was cut")


def _begin(part: _Part, response: requests.Response) -> None:
    """Make `part` ready for the body of `response`: keep it, or empty it where the server starts again."""
    etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    if response.status_code == 206:
        named, version = content_range(response), part.version
        same = named == (part.size, version.total) and (not etag or etag == version.etag)
        if not same or not part.size:
            part.empty()
            raise TransientError("it answers with another piece than was asked for")
    elif is_encoded(response):
        # Neither the size nor an offset of what is stored is known.
        part.empty()
        part.note(_Version(part.source))
    else:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        published = part.expected.bytes
        if None not in (total, published) and total != published:
            raise AddressError(f"it offers {total:,} bytes, and the published file has {published:,}")
        part.empty()
        part.note(_Version(part.source, etag, modified, total))
    lacking, free = (part.version.total or 0) - part.size, shutil.disk_usage(part.place.parent).free
    if lacking > free:
        sizes = f"{lacking / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free there"
        raise UserError(f"{part.place} needs {sizes}: make room, then run again")


def _refuse_page(response: requests.Response, place: Path, start: bytes = b"") -> None:
    """Refuse a web page where a file was wanted."""
    page = response.headers.get("Content-Type", "").lower().startswith("text/html") or _PAGE.match(start)
    if page and place.suffix.lower() not in (".html", ".htm"):
        start = start or next(body(response), b"")
        title = _TITLE.search(start)
        named = f" ({' '.join(title[1].decode('utf-8', 'replace').split())})" if title else ""
        raise AddressError(f"it sends a web page{named} instead of the file")
