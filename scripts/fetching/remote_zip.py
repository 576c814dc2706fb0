"""Downloading single members of a remote zip archive, by HTTP range requests.

A zip ends with a central directory of its members. The last bytes, then the directory, then every needed member are
requested: two requests in the beginning and one per member, however large the archive is (zip64 too). The directory is
cached on disk under the version of the archive, so that a later run requests only the last bytes.
"""

import hashlib
import struct
import threading
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, cast

import requests

from scripts.common.files import atomic
from scripts.common.progress import Progress
from scripts.fetching.archive import LARGEST_MEMBER, find_member, is_inside, refuse_large, refuse_special
from scripts.fetching.connection import (
    DEFAULTS,
    FetchOptions,
    TransientError,
    body,
    content_range,
    get,
    new_session,
    retry,
)
from scripts.fetching.verification import UNKNOWN, AddressError, Expected, Fetched, disk_errors, write_verified

_TAIL = 1 << 16
_LARGEST_DIRECTORY = 1 << 28
_CHUNK = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LONGEST_EXTRA = 1 << 18
"""Most bytes of a member's local name, extra field and data descriptor, whose size the directory does not state."""
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 1


class RemoteZip:
    """A zip archive at `url`.

    Args:
        url: of the archive.
        options: retries, timeouts and parallel requests.
        headers: sent with every request.
        cache: folder for the central directory; None: no cache.
    """

    def __init__(
        self,
        url: str,
        options: FetchOptions = DEFAULTS,
        headers: Mapping[str, str] | None = None,
        cache: Path | None = None,
    ) -> None:
        self._url, self._headers = url, dict(headers or {})
        self._options, self._cache = options, cache
        self._label = options.label or url.rsplit("/", 1)[-1]
        self._local = threading.local()
        self._total: int | None = None

    def members(self) -> dict[str, zipfile.ZipInfo]:
        """All members by name.

        Raises:
            AddressError: the server does not support ranges, or the file is not a zip.
        """
        return self._directory[0]

    def extract(self, targets: Mapping[str, Path], limit: int = LARGEST_MEMBER, label: str = "") -> dict[str, Fetched]:
        """Download members in parallel; a target that exists with the size of its member is skipped.

        Args:
            targets: path to write, by name of the member.
            limit: largest size of a member in bytes.
            label: beginning of progress lines.

        Raises:
            AddressError: a member is missing, damaged, not a regular file, or claims more than `limit` bytes.
        """
        members = self.members()
        for name in targets:
            self._checked_info(name, limit)
        missing = {
            name: target
            for name, target in targets.items()
            if not target.is_file() or target.stat().st_size != members[name].file_size
        }
        fetched: dict[str, Fetched] = {}
        if not missing:
            return fetched
        progress, size = Progress(label or self._label, len(missing)), 0
        with ThreadPoolExecutor(self._options.connections) as pool:
            tasks = {pool.submit(self._fetch, members[name], target): name for name, target in missing.items()}
            try:
                for task in as_completed(tasks):
                    fetched[tasks[task]] = task.result()
                    size += task.result().bytes
                    progress.advance(note=f"{size / 1e6:.1f} MB")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        progress.close()
        return fetched

    def find(self, member: str) -> str:
        """The full name of `member`; a top folder that contains the whole archive may be left out.

        Raises:
            AddressError: there is no such member, or there are several.
        """
        return find_member(self.members(), member)

    def fetch(self, name: str, target: Path, expected: Expected = UNKNOWN, limit: int = LARGEST_MEMBER) -> Fetched:
        """Download one member to `target`, which appears complete and verified or not at all.

        Args:
            name: full name of the member.
            target: path to write.
            expected: size and hashes of the member.
            limit: largest size of the member in bytes.

        Raises:
            WrongContentError: it is not what is expected.
            AddressError: it is missing, damaged, not a regular file, or claims more than `limit` bytes.
        """
        info = self._checked_info(name, limit)
        progress = Progress(self._label, info.file_size, unit="B", scale=True)
        fetched = self._fetch(info, target, expected, progress)
        progress.close()
        return fetched

    def _fetch(
        self, info: zipfile.ZipInfo, target: Path, expected: Expected = UNKNOWN, progress: Progress | None = None
    ) -> Fetched:
        def attempt() -> Fetched:
            if progress:
                progress.begin(info.file_size, 0)
            return write_verified(self._content(info, progress), target, expected)

        return retry(attempt, self._options, self._label)

    def _checked_info(self, name: str, limit: int) -> zipfile.ZipInfo:
        """The directory entry of a member; raises AddressError for a member that cannot or must not be extracted."""
        info = self.members().get(name)
        if info is None:
            raise AddressError(f"the archive contains no {name}")
        refuse_special(info)
        refuse_large(name, info.file_size, limit)
        if not is_inside(name):
            raise AddressError(f"the name {name!r} in the archive leads out of it")
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise AddressError(f"{name} is encrypted, or compressed with an unsupported method")
        return info

    @cached_property
    def _directory(self) -> tuple[dict[str, zipfile.ZipInfo], list[int]]:
        """The members, and the offsets of all members and of the directory, sorted."""
        tail, total, version = retry(self._last_bytes, self._options, self._label)
        cached = self._cache / f"{version}.zipdir" if self._cache and version else None
        if cached and cached.is_file():
            tail = cached.read_bytes()
        end = _EndOfFile(total, tail, self._range_bytes)
        try:
            # ZipFile needs only `seek`, `tell` and `read` to read the directory.
            archive = zipfile.ZipFile(cast(IO[bytes], end))
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error) as error:
            raise AddressError(f"it is not a zip archive, or a damaged one: {error}") from None
        if cached and not cached.is_file():
            with disk_errors(cached), atomic(cached) as file:
                file.write(end.bytes_from(archive.start_dir))
        members = {info.filename: info for info in archive.infolist()}
        return members, sorted([*(info.header_offset for info in members.values()), archive.start_dir])

    def _last_bytes(self) -> tuple[bytes, int, str]:
        """The end of the archive, its size, and a hash of its version ("" if the server states none)."""
        with self._get_range(f"bytes=-{_TAIL}") as (response, total):
            self._total = total
            headers = [response.headers.get(name, "") for name in ("ETag", "Last-Modified")]
            version = hashlib.sha256("\n".join([self._url, str(total), *headers]).encode()).hexdigest()[:32]
            return b"".join(body(response)), total, version if any(headers) else ""

    def _range_bytes(self, start: int, stop: int) -> bytes:
        def attempt() -> bytes:
            with self._get_range(f"bytes={start}-{stop - 1}") as (response, _):
                return b"".join(body(response))

        return retry(attempt, self._options, self._label)

    @contextmanager
    def _get_range(self, byte_range: str) -> Iterator[tuple[requests.Response, int]]:
        """The response to a range request, and the size of the archive."""
        if not hasattr(self._local, "session"):
            self._local.session = new_session()
        headers = {**self._headers, "Range": byte_range}
        with get(self._local.session, self._url, self._options, headers) as response:
            received = content_range(response)
            total = received[1] if received else None
            if response.status_code != 206 or total is None:
                raise AddressError("its server does not support range requests: no single member can be downloaded")
            if self._total not in (None, total):
                raise AddressError("the archive has changed while it was read: run again")
            yield response, total

    def _content(self, info: zipfile.ZipInfo, progress: Progress | None) -> Iterator[bytes]:
        """The unpacked bytes of a member; its size and checksum are verified at the end."""
        starts, start = self._directory[1], info.header_offset
        shortest = start + _LOCAL_HEADER.size + info.compress_size
        # Up to the next member, because the length of the local header is known only after reading it.
        stop = min(starts[bisect_right(starts, start)] if start < starts[-1] else 0, shortest + _LONGEST_EXTRA)
        if stop < shortest:
            raise AddressError(f"{info.filename} overlaps another member: the archive is damaged")
        size = checksum = 0
        with self._get_range(f"bytes={start}-{stop - 1}") as (response, _):
            try:
                for chunk in _unpack(_packed(body(response), info), info):
                    size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
                    if size > info.file_size:
                        break
                    if progress:
                        progress.advance(len(chunk))
                    yield chunk
            except zlib.error as error:
                raise AddressError(f"{info.filename} is damaged in the archive: {error}") from None
        if (size, checksum) != (info.file_size, info.CRC):
            raise AddressError(f"{info.filename} is damaged in the archive: its checksum differs")


def _packed(chunks: Iterator[bytes], info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The packed bytes of a member, which follow its local header."""
    start = b""
    while len(start) < _LOCAL_HEADER.size:
        start += _next(chunks)
    signature, name, extra = _LOCAL_HEADER.unpack_from(start)
    if signature != _SIGNATURE:
        raise AddressError(f"{info.filename} is not at the offset in the directory of the archive")
    skip, left = _LOCAL_HEADER.size + name + extra, info.compress_size
    while len(start) < skip:
        start += _next(chunks)
    chunk = start[skip:]
    while left > 0:
        if chunk:
            yield chunk[:left]
            left -= len(chunk[:left])
        chunk = _next(chunks) if left > 0 else b""


def _next(chunks: Iterator[bytes]) -> bytes:
    chunk = next(chunks, b"")
    if not chunk:
        raise TransientError("the connection was lost")
    return chunk


def _unpack(chunks: Iterator[bytes], info: zipfile.ZipInfo) -> Iterator[bytes]:
    if info.compress_type == zipfile.ZIP_STORED:
        yield from chunks
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    for chunk in chunks:
        # In steps, because a kilobyte may unpack to a megabyte.
        while chunk and (data := inflate.decompress(chunk, _CHUNK)):
            yield data
            chunk = inflate.unconsumed_tail
    yield inflate.flush()


class _EndOfFile:
    """A file object for the end of a remote file; earlier bytes are downloaded when they are read.

    Args:
        size: of the whole file.
        data: its last bytes.
        fetch: downloads the bytes from a start to a stop offset.
    """

    def __init__(self, size: int, data: bytes, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._data, self._fetch = size, data, fetch
        self._start, self._at = size - len(data), 0

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self._at, self._size)[whence]
        if position < 0:
            raise OSError("before the beginning of the file")
        self._at = position
        return position

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._at + size, self._size)
        if self._at < self._start:
            if self._start - self._at > _LARGEST_DIRECTORY:
                raise zipfile.BadZipFile("its directory claims to be larger than any real one")
            self._data = self._fetch(self._at, self._start) + self._data
            self._start = self._at
        data = self._data[self._at - self._start : stop - self._start]
        self._at = max(self._at, stop)
        return data

    def bytes_from(self, start: int) -> bytes:
        """All bytes from `start` on."""
        return self._data[start - self._start :]
