"""Downloading images from the addresses in rows: each once, bounded, checked, and named by a hash of its address."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from scripts.common.errors import UserError
from scripts.common.files import atomic
from scripts.fetching.connection import FetchOptions, TransientError, body, get, new_session, retry
from scripts.fetching.verification import AddressError
from scripts.media.hashed_names import downloaded_stem
from scripts.media.image_check import check_image
from scripts.media.opening import MAX_BYTES, UnreadableImageError

_AHEAD = 4
"""Addresses that wait for a free connection, for each of them."""


class Outcome(NamedTuple):
    """What became of an address; `problem` is "" if its image is there."""

    url: str
    problem: str


def present_stems(folder: Path) -> set[str]:
    """File names, without extensions, of the images that were downloaded into a folder."""
    return {path.stem for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()


def download_images(urls: Iterable[str], folder: Path, options: FetchOptions) -> Iterator[Outcome]:
    """Download the images at `urls` into `folder`; yields one outcome for each, as soon as it is known.

    Args:
        urls: http and https addresses, each once.
        folder: to write into.
        options: retries, timeouts and the number of parallel connections.

    Raises:
        UserError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = iter(urls)
    local = threading.local()

    def download(url: str) -> Outcome:
        if not hasattr(local, "session"):
            local.session = new_session()
        try:
            _write(folder, url, retry(lambda: _read(local.session, url, options), options, url))
        except UnreadableImageError as error:
            return Outcome(url, f"it is not a usable image: {error}")
        except AddressError as error:
            return Outcome(url, str(error))
        return Outcome(url, "")

    with ThreadPoolExecutor(options.connections) as pool:
        running: set[Future[Outcome]] = set()
        try:
            while True:
                for url in islice(waiting, options.connections * _AHEAD - len(running)):
                    running.add(pool.submit(download, url))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(session: object, url: str, options: FetchOptions) -> bytes:
    """The bytes at an address.

    Raises:
        TransientError: the error may be temporary.
        AddressError: it is final.
        UnreadableImageError: too_large.
    """
    with get(session, url, options) as response:  # type: ignore[arg-type]
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None
        data = bytearray()
        for chunk in body(response):
            data += chunk
            if len(data) > MAX_BYTES:
                raise UnreadableImageError("too_large", f"more than {MAX_BYTES} bytes")
    if expected is not None and len(data) < expected:
        raise TransientError("the connection was lost")
    return bytes(data)


def _write(folder: Path, url: str, data: bytes) -> None:
    """Check an image and write it into its file.

    Raises:
        UnreadableImageError: it cannot be read.
        UserError: the file cannot be written.
    """
    extension = check_image(data, "").format
    path = folder / f"{downloaded_stem(url)}.{extension}"
    try:
        with atomic(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
