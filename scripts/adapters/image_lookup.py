"""The images that conversations may use, found by their path below the data path."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from scripts.adapters.base import RowError
from scripts.adapters.raw import IMAGES, RawFiles
from scripts.common.errors import UserError
from scripts.common.files import read_table
from scripts.common.records import ImageRef
from scripts.media.store import INDEX, REJECTED

OUTSIDE_SUBSET = "outside_subset"
"""The reason of rows that are left out because only a taste was asked for: nothing is wrong with them."""


class ImageLookup:
    """Images by source and path.

    Attributes:
        named: paths that were asked for.
        found: those of them that can be used.
    """

    def __init__(
        self,
        keys: Mapping[str, Mapping[str, str]],
        rejected: Mapping[str, Mapping[str, str]],
        wanted: Mapping[str, Collection[str]] | None = None,
    ):
        """Take images by source and path.

        Args:
            keys: of those that can be used.
            rejected: the reasons of all others.
            wanted: paths of a taste, for the sources that it limits.
        """
        self._keys, self._rejected = keys, rejected
        self._wanted = {source: frozenset(paths) for source, paths in (wanted or {}).items()}
        self.named: set[str] = set()
        self.found: set[str] = set()

    @classmethod
    def from_media(
        cls, folders: Mapping[str, Path], wanted: Mapping[str, Collection[str]] | None = None
    ) -> "ImageLookup":
        """The images of media folders: those that could be read."""
        keys, rejected = {}, {}
        for source, folder in folders.items():
            try:
                index = read_table(Path(folder) / INDEX, columns=["path", "key"])
                bad = read_table(Path(folder) / REJECTED, columns=["path", "reason"])
            except FileNotFoundError as error:
                raise UserError(f"{error.filename or folder} does not exist: run shard and index first") from None
            keys[source] = dict(zip(index["path"].to_pylist(), index["key"].to_pylist(), strict=True))
            rejected[source] = dict(zip(bad["path"].to_pylist(), bad["reason"].to_pylist(), strict=True))
        return cls(keys, rejected, wanted)

    @classmethod
    def from_listing(
        cls, raw: RawFiles, sources: Iterable[str], wanted: Mapping[str, Collection[str]] | None = None
    ) -> "ImageLookup":
        """The images that are in the raw folders, readable or not: for judging data before images are read."""
        keys, rejected = {}, {}
        for source in sources:
            table = read_table(raw.folder(source) / IMAGES, columns=["path", "fault"])
            pairs = list(zip(table["path"].to_pylist(), table["fault"].to_pylist(), strict=True))
            keys[source] = {path: path for path, fault in pairs if not fault}
            rejected[source] = {path: fault for path, fault in pairs if fault}
        return cls(keys, rejected, wanted)

    def has(self, source: str, *paths: str) -> bool:
        """Whether `source` has an image at any of `paths`, readable or not."""
        return any(path in self._keys.get(source, {}) or path in self._rejected.get(source, {}) for path in paths)

    def find(self, source: str, *paths: str) -> ImageRef:
        """The image of `source` at the first of `paths` where there is one.

        Raises:
            RowError: missing_image, unreadable_image with the reason why it was rejected, or outside_subset.
        """
        if source not in self._keys:
            raise UserError(
                f"images of {source!r} are needed: add --media {source}=FOLDER (made by scripts.media_index)"
            )
        keys, rejected = self._keys[source], self._rejected.get(source, {})
        if source in self._wanted and self._wanted[source].isdisjoint(paths):
            raise RowError(OUTSIDE_SUBSET, paths[0])
        path = next((path for path in paths if path in keys or path in rejected), paths[0])
        self.named.add(path)
        if path in keys:
            self.found.add(path)
            return ImageRef(source, keys[path])
        if path in rejected:
            raise RowError("unreadable_image", f"{path} ({rejected[path]})")
        raise RowError("missing_image", path)
