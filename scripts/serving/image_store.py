"""Images of requests: data URLs and uploaded files, restricted to common formats, in caches of bounded size.

Nothing is downloaded: a URL in a request could make the server read what its sender must not see (a machine behind the
firewall, the metadata service of a cloud), so http URLs are refused.
"""

import base64
import binascii
import hashlib
import secrets
import threading
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.inference.image_files import decode_image
from scripts.serving.clients import FairCache
from scripts.serving.errors import ApiError

_DECODERS = 2  # images that are decoded at the same time; the largest takes about 1 GB


@dataclass(frozen=True)
class Upload:
    """An uploaded file."""

    name: str
    purpose: str
    data: bytes
    created: int

    def description(self, identity: str) -> dict[str, object]:
        """OpenAI's file object."""
        return {
            "id": identity,
            "object": "file",
            "bytes": len(self.data),
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
        }


class ImageStore:
    """The images of all requests: uploads by id, and preprocessed pixels by the hash of the encoded image."""

    def __init__(self, max_bytes: int, upload_cache_bytes: int, pixel_cache_bytes: int) -> None:
        """Sizes in bytes: `max_bytes` of one encoded image, and the memory of uploads and of pixels."""
        self.max_bytes = max_bytes
        self.uploads: FairCache[Upload] = FairCache(upload_cache_bytes)
        self.pixels: FairCache[np.ndarray] = FairCache(pixel_cache_bytes)
        # Reading a cache changes its order, and requests are read in several threads.
        self._lock = threading.Lock()
        self._decoders = threading.Semaphore(_DECODERS)

    def upload(self, client: str, name: str, purpose: str, data: bytes) -> tuple[str, Upload]:
        """Keep an image, at the cost of the client that holds most; returns its unguessable id and the upload.

        Raises:
            ApiError: not an image, or too large.
        """
        self._check_size(data, name)
        with self._decoders:
            _decoded(data, name)
        identity = f"file-{secrets.token_hex(16)}"
        if len(data) > self.uploads.maxsize:
            raise ApiError(413, f"{name} has {len(data):,} bytes, more than all uploads may have", "file_too_large")
        upload = Upload(name, purpose, data, int(time.time()))
        with self._lock:
            self.uploads.put(client, identity, upload, len(data))
        return identity, upload

    def uploaded(self, identity: str) -> Upload | None:
        """The upload with this id, `None` if there is none (any more)."""
        with self._lock:
            return self.uploads.get(identity)

    def delete(self, identity: str) -> None:
        """Remove an upload, if it exists."""
        with self._lock:
            self.uploads.pop(identity)

    def data(self, part: dict, where: str) -> bytes:
        """The encoded bytes of an image part of a message; `where` is its location in the request.

        Raises:
            ApiError: the part is invalid, its upload does not exist, or the image is too large.
        """
        kind = part.get("type")
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "image_url":
            url = value.get("url") if isinstance(value, dict) else value
            if not isinstance(url, str):
                raise ApiError(400, f"{where}: an image_url part needs a url", "invalid_image_url", where)
            data = self._file(url, where) if url.startswith("file-") else _from_data_url(url, where)
        else:
            identity = value.get("file_id") if isinstance(value, dict) else None
            if not isinstance(identity, str):
                raise ApiError(400, f"{where}: the part needs the file_id of an uploaded image", "invalid_file", where)
            data = self._file(identity, where)
        self._check_size(data, where)
        return data

    def prepare(self, client: str, data: bytes, processor: VisualChatProcessor, where: str) -> tuple[np.ndarray, bytes]:
        """Preprocess an encoded image of a client: pixels, uint8 (3, height, width), and their sha256.

        Raises:
            ApiError: the bytes are not an image of a supported format.
        """
        key = id(processor), hashlib.sha256(data).digest()
        with self._lock:
            pixels = self.pixels.get(key)
        if pixels is None:
            with self._decoders:
                image = _decoded(data, where)
                try:
                    pixels = processor.preprocess_image(image)
                except ValueError as error:
                    raise ApiError(400, f"{where}: {error}", "invalid_image", where) from None
            with self._lock:
                self.pixels.put(client, key, pixels, pixels.nbytes)
        return pixels, hashlib.sha256(pixels.tobytes()).digest()

    def _file(self, identity: str, where: str) -> bytes:
        upload = self.uploaded(identity)
        if upload is None:
            message = f"{where}: there is no file {identity[:80]!r} (any more); upload it again"
            raise ApiError(404, message, "file_not_found", where)
        return upload.data

    def _check_size(self, data: bytes, where: str) -> None:
        if len(data) > self.max_bytes:
            message = f"{where}: the image has {len(data):,} bytes; at most {self.max_bytes:,} are accepted"
            raise ApiError(413, message, "image_too_large", where)


def _from_data_url(url: str, where: str) -> bytes:
    """The bytes of a data URL with base64 content."""
    scheme = url[:16].partition(":")[0].lower()
    if scheme in ("http", "https"):
        message = f"{where}: this server downloads nothing; send the image as a data URL or upload it"
        raise ApiError(400, message, "image_url_not_fetched", where)
    header, comma, content = url.partition(",")
    if scheme != "data" or not comma or not header.lower().endswith(";base64"):
        message = f"{where}: the url must have the form data:image/png;base64,... or be the id of an upload"
        raise ApiError(400, message, "invalid_image_url", where)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{where}: the data URL is not valid base64: {error}", "invalid_image_url", where) from None


def _decoded(data: bytes, where: str) -> Image.Image:
    """Decode an image of a supported format (see scripts/media/opening.py) completely.

    Raises:
        ApiError: it is none.
    """
    try:
        return decode_image(data, where)
    except UserError as error:
        raise ApiError(400, str(error), "invalid_image", where) from None
