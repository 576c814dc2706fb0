"""Looking up the images of conversations by their path below the data path."""

import posixpath
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from scripts.adapters.base import RowError
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.common.files import read_table
from scripts.common.records import ImageRef
from scripts.media.listing import IMAGES_TABLE
from scripts.media.store import INDEX, REJECTED

OUTSIDE_SUBSET = "outside_subset"
"""The reason of rows that are left out because they show images outside of the configured subset; they are not bad."""


_EXPLAINED = 20
"""How many missing images are explained with those of the same name, and how many of these are named."""
_CANDIDATES = 4


class ImageLookup:
    """Images by source and path.

    Attributes:
        named: paths of the images that were looked up.
        found: those of them that can be used.
    """

    def __init__(
        self,
        keys: Mapping[str, Mapping[str, str]],
        rejected: Mapping[str, Mapping[str, str]],
        subset: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Look up in tables by source and path.

        Args:
            keys: keys of the usable images.
            rejected: the reasons of all others.
            subset: paths of the only images to use, for the sources that a subset limits.
        """
        self._keys, self._rejected = keys, rejected
        self._subset = {source: frozenset(paths) for source, paths in (subset or {}).items()}
        self._ambiguous: dict[str, dict[str, list[str]]] = {}
        self._explained = 0
        self.named: set[str] = set()
        self.found: set[str] = set()

    @classmethod
    def from_media(
        cls, folders: Mapping[str, Path], subset: Mapping[str, Collection[str]] | None = None
    ) -> "ImageLookup":
        """Look up in media folders, whose images have been decoded."""
        keys, rejected = {}, {}
        for source, folder in folders.items():
            try:
                index = read_table(Path(folder) / INDEX, columns=["path", "key"])
                bad = read_table(Path(folder) / REJECTED, columns=["path", "reason"])
            except FileNotFoundError as error:
                raise UserError(f"{error.filename or folder} does not exist: run shard and media_index first") from None
            keys[source] = dict(zip(index["path"].to_pylist(), index["key"].to_pylist(), strict=True))
            rejected[source] = dict(zip(bad["path"].to_pylist(), bad["reason"].to_pylist(), strict=True))
        return cls(keys, rejected, subset)

    @classmethod
    def from_listing(
        cls, raw: RawFiles, sources: Iterable[str], subset: Mapping[str, Collection[str]] | None = None
    ) -> "ImageLookup":
        """Look up in the raw folders, for validation before images are decoded: every listed image is usable."""
        keys, rejected = {}, {}
        for source in sources:
            table = read_table(raw.folder(source) / IMAGES_TABLE, columns=["path", "fault"])
            pairs = list(zip(table["path"].to_pylist(), table["fault"].to_pylist(), strict=True))
            keys[source] = {path: path for path, fault in pairs if not fault}
            rejected[source] = {path: fault for path, fault in pairs if fault}
        return cls(keys, rejected, subset)

    def has(self, source: str, *paths: str) -> bool:
        """Whether `source` has an image at any of `paths`, readable or not."""
        return any(path in self._keys.get(source, {}) or path in self._rejected.get(source, {}) for path in paths)

    def find(self, source: str, *paths: str) -> ImageRef:
        """The image of `source` at the first of `paths` that exists.

        Raises:
            RowError: missing_image, ambiguous_image (an archive has it in several folders), unreadable_image (with the
                reason of its rejection), or outside_subset.
            UserError: the images of `source` were not given.
        """
        if source not in self._keys:
            raise UserError(
                f"images of {source!r} are needed: add --media {source}=FOLDER (made by scripts.media_index)"
            )
        keys, rejected = self._keys[source], self._rejected.get(source, {})
        if source in self._subset and self._subset[source].isdisjoint(paths):
            raise RowError(OUTSIDE_SUBSET, paths[0])
        path = next((path for path in paths if path in keys or path in rejected), paths[0])
        self.named.add(path)
        if path in keys:
            self.found.add(path)
            return ImageRef(source, keys[path])
        if path in rejected:
            raise RowError("unreadable_image", f"{path} ({rejected[path]})")
        raise self._missing(source, path)

    def _missing(self, source: str, path: str) -> RowError:
        """The error for an image that is not there; it names those that have its name and lie in other folders."""
        name = posixpath.basename(path)
        if source not in self._ambiguous:
            self._ambiguous[source] = {}
            for other, reason in self._rejected.get(source, {}).items():
                if reason == "ambiguous_name":
                    self._ambiguous[source].setdefault(posixpath.basename(other), []).append(other)
        if others := self._ambiguous[source].get(name):
            return RowError("ambiguous_image", f"{path} may be any of {', '.join(others[:_CANDIDATES])}")
        self._explained += 1
        # Only for the examples of a report: all images are looked through.
        others = [] if self._explained > _EXPLAINED else [each for each in self._keys[source] if _ends(each, name)]
        if others:
            return RowError("missing_image", f"{path}; others with its name are {', '.join(others[:_CANDIDATES])}")
        return RowError("missing_image", path)


def _ends(path: str, name: str) -> bool:
    return path.endswith(name) and posixpath.basename(path) == name
