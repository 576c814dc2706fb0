"""Looking up the images of conversations by their path below the data path."""

import posixpath
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from scripts.adapters.base import RowError
from scripts.adapters.raw import RawFiles
from scripts.adapters.source_images import SourceImages
from scripts.common.errors import UserError
from scripts.common.files import read_table
from scripts.common.records import ImageRef
from scripts.media.listing import IMAGES_TABLE
from scripts.media.store import INDEX, REJECTED, REJECTED_SCHEMA

OUTSIDE_SUBSET = "outside_subset"
"""The reason of rows that are left out because they show images outside of the configured subset; they are not bad."""


AMBIGUOUS = "ambiguous_name"
"""The fault of a member of an archive whose base name another folder of it has too."""
_EXPLAINED = 20
"""How many missing images are explained with those of the same name, and how many of these are named."""
CANDIDATES = 4


class ImageLookup:
    """Images by source and path."""

    def __init__(self, images: Mapping[str, SourceImages], subset: Mapping[str, Collection[str]] | None = None) -> None:
        """Look up in tables by source.

        Args:
            images: of every source.
            subset: paths of the only images to use, for the sources that a subset limits.
        """
        self._images = images
        self._subset = {source: frozenset(paths) for source, paths in (subset or {}).items()}
        self._missing_hashes: set[int] = set()
        self._explained = 0

    @classmethod
    def from_media(
        cls, folders: Mapping[str, Path], subset: Mapping[str, Collection[str]] | None = None
    ) -> "ImageLookup":
        """Look up in media folders, whose images have been decoded."""
        images = {}
        for source, folder in folders.items():
            try:
                index = read_table(Path(folder) / INDEX, columns=["path", "key"])
                bad = read_table(Path(folder) / REJECTED, schema=REJECTED_SCHEMA)
            except FileNotFoundError as error:
                raise UserError(f"{error.filename or folder} does not exist: run shard and media_index first") from None
            images[source] = SourceImages(index["path"], index["key"], bad["path"], _reasons(bad))
            del index, bad
        pa.default_memory_pool().release_unused()
        return cls(images, subset)

    @classmethod
    def from_listing(
        cls, raw: RawFiles, sources: Iterable[str], subset: Mapping[str, Collection[str]] | None = None
    ) -> "ImageLookup":
        """Look up in the raw folders, for validation before images are decoded: every listed image is usable."""
        images = {}
        for source in sources:
            table = read_table(raw.folder(source) / IMAGES_TABLE, columns=["path", "fault"])
            faultless = pc.equal(table["fault"], "")
            usable, bad = table.filter(faultless), table.filter(pc.invert(faultless))
            images[source] = SourceImages(usable["path"], None, bad["path"], bad["fault"])
        return cls(images, subset)

    @property
    def named(self) -> int:
        """How many different images were looked up."""
        return sum(images.seen()[1] for images in self._images.values()) + len(self._missing_hashes)

    @property
    def found(self) -> int:
        """How many of them can be used."""
        return sum(images.seen()[0] for images in self._images.values())

    def of(self, source: str) -> SourceImages:
        """The images of `source`.

        Raises:
            UserError: they were not given.
        """
        if source not in self._images:
            raise UserError(
                f"images of {source!r} are needed: add --media {source}=FOLDER (made by scripts.media_index)"
            )
        return self._images[source]

    def has(self, source: str, *paths: str) -> bool:
        """Whether `source` has an image at any of `paths`, readable or not."""
        images = self._images.get(source)
        return images is not None and any(images.row(path) is not None for path in paths)

    def find(self, source: str, *paths: str) -> ImageRef:
        """The image of `source` at the first of `paths` that exists.

        Raises:
            RowError: missing_image, ambiguous_image (an archive has it in several folders), unreadable_image (with the
                reason of its rejection), or outside_subset.
            UserError: the images of `source` were not given.
        """
        images = self._images.get(source)
        if images is None:
            images = self.of(source)
        if self._subset and source in self._subset and self._subset[source].isdisjoint(paths):
            raise RowError(OUTSIDE_SUBSET, paths[0])
        for path in paths:
            row = images.row(path)
            if row is not None:
                return self.at(source, row)
        raise self._missing(source, paths[0])

    def at(self, source: str, row: int) -> ImageRef:
        """The image of `source` with the number `row`.

        Raises:
            RowError: unreadable_image (with the reason of its rejection).
        """
        images = self._images[source]
        images.see(row)
        if row < images.usable:
            return ImageRef(source, images.key(row))
        raise RowError("unreadable_image", f"{images.path(row)} ({images.reason(row)})")

    def count_missing(self, source: str, path: str) -> bool:
        """Count an image that is not there; returns whether its example should still be explained."""
        self._missing_hashes.add(hash((source, path)))
        self._explained += 1
        # A report quotes no more, and an explanation looks through all images.
        return self._explained <= _EXPLAINED

    def _missing(self, source: str, path: str) -> RowError:
        """The error for an image that is not there; it names those that have its name and lie in other folders."""
        images, name = self.of(source), posixpath.basename(path)
        explained = self.count_missing(source, path)
        rows = images.derived_rows(posixpath.basename, name) if images.has_reason(AMBIGUOUS) else []
        if others := [images.path(row) for row in rows if images.reason(row) == AMBIGUOUS]:
            return RowError("ambiguous_image", f"{path} may be any of {', '.join(others[:CANDIDATES])}")
        others = images.ending_with(name)[:CANDIDATES] if explained else []
        if others:
            return RowError("missing_image", f"{path}; others with its name are {', '.join(others)}")
        return RowError("missing_image", path)


def _reasons(rejected: pa.Table) -> pa.ChunkedArray:
    """Why images were rejected; of a format that needs a plug-in, with its name."""
    unsupported = pc.equal(rejected["reason"], "unsupported_format")
    explained = pc.binary_join_element_wise(rejected["reason"], rejected["detail"], ": ")
    return pc.if_else(unsupported, explained, rejected["reason"])
