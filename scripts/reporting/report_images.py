"""Images for the report, found by the hash of their content and shrunk until they fit into the page itself.

Held-out images lie in media shards, a suite's images beside its JSON file. Evaluation notes the sha256 of every image a
model was shown, so the report looks for exactly these bytes; an image that is gone or has changed is shown as "not at
hand" rather than as something the model never saw.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from scripts.common.errors import UserError
from scripts.common.files import read_table
from scripts.inference.image_files import decode, find_image_root

LONGEST_SIDE = 320
"""Pixels of a picture's longer side: sharp at the size it is shown, about 15 kB."""
PIXEL_ART = 96
"""ReportImages up to this size are kept as they are and enlarged without smoothing."""


@dataclass(frozen=True)
class ReportImage:
    """An image in the page: its number in the conversation and its data URI, `None` if its bytes are not at hand."""

    number: int
    uri: str | None
    small: bool


class ReportImages:
    """Finds images by sha256 in media folders and in the folders of suites."""

    def __init__(self, media: Mapping[str, Path], suite_folders: Mapping[str, Path]):
        """`media`: the media folder of each source; `suite_folders`: the folder that a suite's image paths begin at."""
        self._media, self._suite_folders = media, suite_folders

    def heldout(self, hashes: Iterable[str], first: int = 1) -> list[ReportImage]:
        """The pictures of held-out images, numbered from `first`."""
        return [self._picture(number, self._stored(sha256)) for number, sha256 in enumerate(hashes, start=first)]

    def of_suite(self, suite: str, images: Iterable[Mapping[str, str]], first: int = 1) -> list[ReportImage]:
        """The pictures of a suite's images, {"path"?, "sha256"} each, numbered from `first`."""
        return [
            self._picture(number, self._beside(suite, image.get("path", ""), image["sha256"]))
            for number, image in enumerate(images, start=first)
        ]

    def stored(self, source: str, key: str, number: int) -> ReportImage:
        """The picture of an image of the media, with the number it has in its conversation."""
        found = self._store.lookup(source, key) if source in self._media else None
        return self._picture(number, self._store.read(source, key) if found else None)

    def _stored(self, sha256: str) -> bytes | None:
        place = self._places.get(sha256)
        return self._store.read(*place) if place else None

    def _beside(self, suite: str, name: str, sha256: str) -> bytes | None:
        if suite not in self._suite_folders:
            return None
        folder = self._suite_folders[suite]
        try:
            data = (find_image_root(folder, [name]) / name).read_bytes()
        except OSError:
            return None
        # The hash, not the path, decides: a suite may name a file anywhere, and only what the model saw may be shown.
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    @cached_property
    def _store(self):
        from scripts.media.store import MediaStore

        return MediaStore(self._media)

    @cached_property
    def _places(self) -> dict[str, tuple[str, str]]:
        """Where each image is stored: sha256 to (source, key)."""
        places = {}
        for source, folder in sorted(self._media.items()):
            index = read_table(folder / "index.parquet", columns=["sha256", "key"])
            for sha256, key in zip(index["sha256"].to_pylist(), index["key"].to_pylist(), strict=True):
                places.setdefault(sha256, (source, key))
        return places

    @staticmethod
    def _picture(number: int, data: bytes | None) -> ReportImage:
        uri, small = data_uri(data) if data else (None, False)
        return ReportImage(number, uri, small)


@cache
def data_uri(data: bytes) -> tuple[str | None, bool]:
    """An image as a data URI, shrunk to `LONGEST_SIDE`, and whether it is small enough to be shown pixel by pixel.

    Re-encoded in every case, so that nothing of a hostile file (scripts, metadata) reaches the page.
    """
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(decode(data, "image")).convert("RGB")
    except UserError:
        return None, False
    small = max(image.size) <= PIXEL_ART
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        image.save(buffer, "JPEG", quality=82)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", small
