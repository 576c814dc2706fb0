"""Images of requests: data URLs and uploaded files, opened only if they are images of a common format, and kept small.

Nothing is ever fetched: an address in a request could make the server read what its sender may not (a machine behind
the firewall, a cloud's metadata), so http addresses are refused with a word on what to do instead.
"""

import base64
import binascii
import hashlib
import secrets
import threading
import time
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache, cachedmethod
from PIL import Image, UnidentifiedImageError

from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.inference.image_files import decode
from scripts.media.opening import open_image
from scripts.serving.errors import ApiError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")
"""What is opened. Pillow knows many more formats, some of which start other programs."""
_DECODERS = 2  # images that are decoded at the same time; the largest takes some 600 MB


@dataclass(frozen=True)
class Upload:
    """An uploaded file."""

    name: str
    purpose: str
    data: bytes
    created: int

    def described(self, identity: str) -> dict[str, object]:
        """The file as the API describes it."""
        return {
            "id": identity,
            "object": "file",
            "bytes": len(self.data),
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
        }


class ImageStore:
    """The images of all requests: uploads by their id, and pixels by what they were decoded from."""

    def __init__(self, max_bytes: int, upload_cache_bytes: int, pixel_cache_bytes: int):
        """`max_bytes` of an encoded image; `upload_cache_bytes` and `pixel_cache_bytes` are the memory for uploads and for pixels."""
        self.max_bytes = max_bytes
        self.uploads: LRUCache[str, Upload] = LRUCache(upload_cache_bytes, getsizeof=lambda upload: len(upload.data))
        self.pixels: LRUCache[tuple[int, bytes], np.ndarray] = LRUCache(
            pixel_cache_bytes, getsizeof=lambda image: image.nbytes
        )
        # Reading an LRU cache changes its order, and requests are read in several threads.
        self._lock = threading.Lock()
        self._decoders = threading.Semaphore(_DECODERS)

    def upload(self, name: str, purpose: str, data: bytes) -> str:
        """Keep an image until there is no more room; returns its id, which nobody can guess.

        Raises:
            ApiError: it is no image, or too large.
        """
        self._check_size(data, name)
        with self._decoders:
            _decoded(data, name)
        identity = f"file-{secrets.token_hex(16)}"
        if len(data) > self.uploads.maxsize:
            raise ApiError(413, f"{name} has {len(data)} bytes, more than there is room for uploads", "file_too_large")
        with self._lock:
            self.uploads[identity] = Upload(name, purpose, data, int(time.time()))
        return identity

    def uploaded(self, identity: str) -> Upload | None:
        """The upload with this id, None if there is none (any more)."""
        with self._lock:
            return self.uploads.get(identity)

    def delete(self, identity: str) -> None:
        """Forget an upload; nothing happens if it is gone already."""
        with self._lock:
            self.uploads.pop(identity, None)

    def data(self, part: dict, where: str) -> bytes:
        """The encoded image that a part of a message brings.

        Raises:
            ApiError: the part brings none that may be read.
        """
        kind = part.get("type")
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "image_url":
            url = value.get("url") if isinstance(value, dict) else value
            if not isinstance(url, str):
                raise ApiError(400, f"{where}: an image_url part must hold a url", "invalid_image_url", where)
            data = self._file(url, where) if url.startswith("file-") else _from_data_url(url, where)
        else:
            identity = value.get("file_id") if isinstance(value, dict) else None
            if not isinstance(identity, str):
                raise ApiError(400, f"{where}: name an uploaded image as file_id", "invalid_file", where)
            data = self._file(identity, where)
        self._check_size(data, where)
        return data

    def prepared(self, data: bytes, processor: VisualChatProcessor, where: str) -> tuple[np.ndarray, bytes]:
        """What a model sees of an encoded image, uint8 (3, height, width), and the sha256 of these pixels.

        Raises:
            ApiError: the bytes are no image.
        """
        pixels = self._pixels(data, processor, where)
        return pixels, hashlib.sha256(pixels.tobytes()).digest()

    @cachedmethod(
        lambda self: self.pixels,
        key=lambda self, data, processor, where: (id(processor), hashlib.sha256(data).digest()),
        lock=lambda self: self._lock,
    )
    def _pixels(self, data: bytes, processor: VisualChatProcessor, where: str) -> np.ndarray:
        with self._decoders:
            return processor.image(_decoded(data, where))

    def _file(self, identity: str, where: str) -> bytes:
        upload = self.uploaded(identity)
        if upload is None:
            message = f"{where}: there is no file {identity!r} (any more); upload it again"
            raise ApiError(404, message, "file_not_found", where)
        return upload.data

    def _check_size(self, data: bytes, where: str) -> None:
        if len(data) > self.max_bytes:
            message = f"{where}: the image has {len(data):,} bytes; at most {self.max_bytes:,} are read"
            raise ApiError(413, message, "image_too_large", where)


def _from_data_url(url: str, where: str) -> bytes:
    """The bytes of a data URL with base64 content."""
    scheme = url[:16].partition(":")[0].lower()
    if scheme in ("http", "https"):
        message = f"{where}: this server fetches nothing from addresses; send the image as a data URL or upload it"
        raise ApiError(400, message, "image_url_not_fetched", where)
    header, comma, content = url.partition(",")
    if scheme != "data" or not comma or not header.lower().endswith(";base64"):
        message = f"{where}: the url must be of the form data:image/png;base64,... or the id of an upload"
        raise ApiError(400, message, "invalid_image_url", where)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{where}: the data URL is not valid base64: {error}", "invalid_image_url", where) from None


def _decoded(data: bytes, where: str) -> Image.Image:
    """Decode an image completely."""
    try:
        try:
            with open_image(data) as image:
                kind = image.format
        except UnidentifiedImageError:
            raise UserError(f"{where} is not an image that can be read") from None
        except Exception:  # a damaged header raises nearly anything
            kind = FORMATS[0]  # `decode` says what is wrong
        if kind not in FORMATS:
            raise UserError(f"{where} is a {kind} file; send a {', '.join(FORMATS[:-1])} image")
        return decode(data, where)
    except UserError as error:
        raise ApiError(400, str(error), "invalid_image", where) from None
    except Exception as error:
        raise ApiError(400, f"image {where} is damaged: {error}", "invalid_image", where) from None
