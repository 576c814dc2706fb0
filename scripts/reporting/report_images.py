"""Images of the report, found by the hash of their content, scaled down and embedded in the page.

Held-out images are in media shards, the images of a suite in the folder of its file. The result files of an evaluation
have the sha256 of every image that a model was shown, so the report shows exactly these bytes; for an image that is
missing or has changed it shows "not available" instead of something that the model never saw.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.common.errors import UserError
from scripts.common.files import read_table
from scripts.inference.image_files import decode_image, find_image_root, read_image_file

if TYPE_CHECKING:
    from scripts.media.store import MediaStore

LONGEST_SIDE = 320
"""Pixels of an embedded image's longer side: sharp at the size at which it is shown, about 15 kB."""
PIXEL_ART = 96
"""Images up to this size keep their pixels and are enlarged without smoothing."""


@dataclass(frozen=True)
class ReportImage:
    """An image in the page: its number in the conversation, and its data URI, `None` if its bytes are not available."""

    number: int
    uri: str | None
    small: bool


class ReportImages:
    """Finds images by sha256 in media folders and in the folders of suites."""

    def __init__(self, media: Mapping[str, Path], suite_folders: Mapping[str, Path]) -> None:
        """`media`: media folders by source; `suite_folders`: by suite, what its image paths are relative to."""
        self._media, self._suite_folders = media, suite_folders

    def heldout(self, hashes: Iterable[str], first: int = 1) -> list[ReportImage]:
        """Held-out images by sha256, numbered from `first`."""
        return [self._embedded(number, self._stored(sha256)) for number, sha256 in enumerate(hashes, start=first)]

    def of_suite(self, suite: str, images: Iterable[Mapping[str, str]], first: int = 1) -> list[ReportImage]:
        """Images of a suite, {"path"?, "sha256"} each, numbered from `first`."""
        return [
            self._embedded(number, self._beside(suite, image.get("path", ""), image["sha256"]))
            for number, image in enumerate(images, start=first)
        ]

    def stored(self, source: str, key: str, number: int) -> ReportImage:
        """An image of the media shards, with its number in the conversation."""
        row = self._store.lookup(source, key) if source in self._media else None
        return self._embedded(number, self._store.read(source, key) if row else None)

    def _stored(self, sha256: str) -> bytes | None:
        location = self._locations.get(sha256)
        return self._store.read(*location) if location else None

    def _beside(self, suite: str, name: str, sha256: str) -> bytes | None:
        if suite not in self._suite_folders:
            return None
        folder = self._suite_folders[suite]
        try:
            data = read_image_file(find_image_root(folder, [name]) / name, name)
        except UserError:
            return None
        # The hash decides and not the path: a suite may name any file, and only what the model saw may be shown.
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    @cached_property
    def _store(self) -> "MediaStore":
        from scripts.media.store import MediaStore

        return MediaStore(self._media)

    @cached_property
    def _locations(self) -> dict[str, tuple[str, str]]:
        """(source, key) of every stored image by sha256."""
        locations: dict[str, tuple[str, str]] = {}
        for source, folder in sorted(self._media.items()):
            index = read_table(folder / "index.parquet", columns=["sha256", "key"])
            for sha256, key in zip(index["sha256"].to_pylist(), index["key"].to_pylist(), strict=True):
                locations.setdefault(sha256, (source, key))
        return locations

    @staticmethod
    def _embedded(number: int, data: bytes | None) -> ReportImage:
        uri, small = data_uri(data) if data else (None, False)
        return ReportImage(number, uri, small)


@cache
def data_uri(data: bytes) -> tuple[str | None, bool]:
    """An image as a data URI, scaled down to `LONGEST_SIDE`, and whether it is at most `PIXEL_ART`.

    Always re-encoded, so that no scripts or metadata of the file reach the page. (None, False) if it is not an image.
    """
    from model.pixels import to_rgb

    try:
        image = to_rgb(decode_image(data, "image"))
    except UserError:
        return None, False
    small = max(image.size) <= PIXEL_ART
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        image.save(buffer, "JPEG", quality=82)
    subtype = "png" if small else "jpeg"
    return f"data:image/{subtype};base64,{base64.b64encode(buffer.getvalue()).decode()}", small
