"""Single members of a zip archive that stays on its server, by HTTP Range.

A zip ends with a directory of its members. Its last bytes, then the directory, then each wanted member are asked for:
two requests in the beginning and one for each member, however large the archive is (zip64 too). The directory is kept
on the disk under the version of the archive, so that a later run asks for its last bytes only.
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

import requests

from scripts.common.files import atomic
from scripts.common.progress import Progress
from scripts.fetching.archive import LARGEST_MEMBER, find_member, is_inside, refuse_large, refuse_special
from scripts.fetching.connection import (
    DEFAULTS,
    FetchOptions,
    TransientError,
    answer,
    body,
    content_range,
    new_session,
    retry,
)
from scripts.fetching.verification import UNKNOWN, AddressError, Expected, Fetched, keep, writing

_TAIL = 1 << 16
_LARGEST_DIRECTORY = 1 << 28
_CHUNK = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LONGEST_EXTRA = 1 << 18
"""Name, extra field and descriptor of a member, which the directory does not count, are shorter."""
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 1


class RemoteZip:
    """A zip archive at `url`.

    Args:
        headers: sent with every request.
        cache: folder for the directory; None keeps nothing.
    """

    def __init__(
        self,
        url: str,
        options: FetchOptions = DEFAULTS,
        headers: Mapping[str, str] | None = None,
        cache: Path | None = None,
    ):
        self._url, self._headers = url, dict(headers or {})
        self._options, self._cache = options, cache
        self._label = options.label or url.rsplit("/", 1)[-1]
        self._local = threading.local()
        self._total: int | None = None

    def members(self) -> dict[str, zipfile.ZipInfo]:
        """All members by name.

        Raises:
            AddressError: the server knows no ranges, or the file is not a zip.
        """
        return self._directory[0]

    def extract(self, targets: Mapping[str, Path], limit: int = LARGEST_MEMBER, label: str = "") -> dict[str, Fetched]:
        """Fetch members to the files that `targets` names; one that is there with the size of its member stays.

        Raises:
            AddressError: a member is missing, damaged, no plain file, or claims more than `limit` bytes.
        """
        members = self.members()
        for name in targets:
            self._refuse(name, limit)
        wanted = {
            name: place
            for name, place in targets.items()
            if not place.is_file() or place.stat().st_size != members[name].file_size
        }
        fetched: dict[str, Fetched] = {}
        if not wanted:
            return fetched
        progress, size = Progress(label or self._label, len(wanted)), 0
        with ThreadPoolExecutor(self._options.connections) as pool:
            tasks = {pool.submit(self._fetch, members[name], place): name for name, place in wanted.items()}
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
        """The full name of `member`; one folder that holds all of the archive may be left out. Raises AddressError."""
        return find_member(self.members(), member)

    def fetch(self, name: str, place: Path, expected: Expected = UNKNOWN, limit: int = LARGEST_MEMBER) -> Fetched:
        """Fetch one member to `place`, which appears whole and right or not at all.

        Raises:
            WrongContent: it is not what is expected.
            AddressError: it is missing, damaged, no plain file, or claims more than `limit` bytes.
        """
        info = self._refuse(name, limit)
        progress = Progress(self._label, info.file_size, unit="B", scale=True)
        fetched = self._fetch(info, place, expected, progress)
        progress.close()
        return fetched

    def _fetch(
        self, info: zipfile.ZipInfo, place: Path, expected: Expected = UNKNOWN, progress: Progress | None = None
    ) -> Fetched:
        def whole() -> Fetched:
            if progress:
                progress.begin(info.file_size, 0)
            return keep(self._content(info, progress), place, expected)

        return retry(whole, self._options, self._label)

    def _refuse(self, name: str, limit: int) -> zipfile.ZipInfo:
        info = self.members().get(name)
        if info is None:
            raise AddressError(f"the archive holds no {name}")
        refuse_special(info)
        refuse_large(name, info.file_size, limit)
        if not is_inside(name):
            raise AddressError(f"the name {name!r} in the archive leads out of it")
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise AddressError(f"{name} is packed in a way that cannot be read here")
        return info

    @cached_property
    def _directory(self) -> tuple[dict[str, zipfile.ZipInfo], list[int]]:
        """The members, and where each of them and the directory begin, in order."""
        tail, version = retry(self._last_bytes, self._options, self._label)
        cached = self._cache and version and self._cache / f"{version}.zipdir"
        if cached and cached.is_file():
            tail = cached.read_bytes()
        end = _End(self._total, tail, self._piece)
        try:
            archive = zipfile.ZipFile(end)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error) as error:
            raise AddressError(f"it is no zip archive, or a damaged one: {error}") from None
        if cached and not cached.is_file():
            with writing(cached), atomic(cached) as file:
                file.write(end.from_(archive.start_dir))
        members = {info.filename: info for info in archive.infolist()}
        return members, sorted([*(info.header_offset for info in members.values()), archive.start_dir])

    def _last_bytes(self) -> tuple[bytes, str]:
        """The end of the archive, and a name of its version: empty where the server tells none."""
        with self._ranged(f"bytes=-{_TAIL}") as response:
            _, self._total = content_range(response)
            told = [response.headers.get(name, "") for name in ("ETag", "Last-Modified")]
            version = hashlib.sha256("\n".join([self._url, str(self._total), *told]).encode()).hexdigest()[:32]
            return b"".join(body(response)), version if any(told) else ""

    def _piece(self, start: int, stop: int) -> bytes:
        def ask() -> bytes:
            with self._ranged(f"bytes={start}-{stop - 1}") as response:
                return b"".join(body(response))

        return retry(ask, self._options, self._label)

    @contextmanager
    def _ranged(self, wanted: str) -> Iterator[requests.Response]:
        if not hasattr(self._local, "session"):
            self._local.session = new_session()
        headers = {**self._headers, "Range": wanted}
        with answer(self._local.session, self._url, self._options, headers) as response:
            named = content_range(response)
            if response.status_code != 206 or named is None or named[1] is None:
                raise AddressError("its server gives no parts of a file (HTTP Range): no member can be read alone")
            if self._total not in (None, named[1]):
                raise AddressError("the archive has changed while it was read: run again")
            yield response

    def _content(self, info: zipfile.ZipInfo, progress: Progress | None) -> Iterator[bytes]:
        """The unpacked bytes of a member, compared with its size and checksum at the end."""
        starts, start = self._directory[1], info.header_offset
        shortest = start + _LOCAL_HEADER.size + info.compress_size
        # Up to the next member: how long its own header is, a member says only when it is read.
        stop = min(starts[bisect_right(starts, start)] if start < starts[-1] else 0, shortest + _LONGEST_EXTRA)
        if stop < shortest:
            raise AddressError(f"{info.filename} overlaps another member: the archive is damaged")
        size = checksum = 0
        with self._ranged(f"bytes={start}-{stop - 1}") as response:
            try:
                for piece in _unpack(_packed(body(response), info), info):
                    size, checksum = size + len(piece), zlib.crc32(piece, checksum)
                    if size > info.file_size:
                        break
                    if progress:
                        progress.advance(len(piece))
                    yield piece
            except zlib.error as error:
                raise AddressError(f"{info.filename} is damaged in the archive: {error}") from None
        if (size, checksum) != (info.file_size, info.CRC):
            raise AddressError(f"{info.filename} is damaged in the archive: its checksum is another one")


def _packed(pieces: Iterator[bytes], info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The member's packed bytes: what follows its own header."""
    start = b""
    while len(start) < _LOCAL_HEADER.size:
        start += _next(pieces)
    signature, name, extra = _LOCAL_HEADER.unpack_from(start)
    if signature != _SIGNATURE:
        raise AddressError(f"{info.filename} is not where the directory of the archive says")
    skip, left = _LOCAL_HEADER.size + name + extra, info.compress_size
    while len(start) < skip:
        start += _next(pieces)
    piece = start[skip:]
    while left > 0:
        if piece:
            yield piece[:left]
            left -= len(piece[:left])
        piece = _next(pieces) if left > 0 else b""


def _next(pieces: Iterator[bytes]) -> bytes:
    piece = next(pieces, b"")
    if not piece:
        raise TransientError("the line was cut")
    return piece


def _unpack(pieces: Iterator[bytes], info: zipfile.ZipInfo) -> Iterator[bytes]:
    if info.compress_type == zipfile.ZIP_STORED:
        yield from pieces
        return
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    for piece in pieces:
        # In steps: a kilobyte may unpack to a megabyte.
        while piece and (data := inflate.decompress(piece, _CHUNK)):
            yield data
            piece = inflate.unconsumed_tail
    yield inflate.flush()


class _End:
    """The end of a remote file, as a file: what is read before it is fetched and joined to its front."""

    def __init__(self, size: int, data: bytes, fetch: Callable[[int, int], bytes]):
        self._size, self._data, self._fetch = size, data, fetch
        self._start, self._at = size - len(data), 0

    def seek(self, offset: int, whence: int = 0) -> int:
        place = offset + (0, self._at, self._size)[whence]
        if place < 0:
            raise OSError("before the beginning of the file")
        self._at = place
        return place

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

    def from_(self, start: int) -> bytes:
        """All bytes from `start` on."""
        return self._data[start - self._start :]
