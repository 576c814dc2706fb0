"""Finding the images that rows of own data name, hold as bytes, or refer to by an address.

A name is compared as it was written first: with the path of an image below `images`, inside of an archive with or
without the folders that contain all of it, and below `folder`. Absolute paths are made relative to the folders of the
dataset. Only if nothing is found, other spellings of the path count (`image_names`); that is noted. A name that is only
the end of a path is never taken for it, because another folder may have another image of that name.
"""

import difflib
import os
import posixpath
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from scripts.adapters.base import RowError
from scripts.adapters.image_lookup import CANDIDATES, ImageLookup
from scripts.adapters.own.image_names import loose, loose_name, stem, tidy
from scripts.adapters.own.image_values import ImageBytes, ImageName, ImageValue
from scripts.adapters.raw import DATA_LINK, Note, RawFiles
from scripts.common.records import ImageRef
from scripts.config.paths import is_archive
from scripts.config.registry import image_prefix
from scripts.media.hashed_names import downloaded_stem, embedded_path

LOOSELY = "name_matched_loosely"
"""The note about an image that was found by another spelling of its name."""
DOWNLOAD = "python -m scripts.download_images"
_WINDOWS = re.compile(r"[A-Za-z]:[/\\]|\\\\")
_SEPARATORS = re.compile(r"[/\\]")
_MOST_COMPARED = 5000
"""Names among which the nearest ones are looked for: each takes some ten microseconds."""
_MOST_ENTRIES = 10_000
"""Entries of a folder among which archives are looked for."""
_SHOWN = 100


class OwnImages:
    """The images of one custom dataset.

    Args:
        images: of its source.
        source: its name.
        sets: the folders of its sets of images below `folder`, each ending in "/", with the folder that contains all
            of the set's archives, or "".
        folder: of the dataset.
    """

    def __init__(self, images: ImageLookup, source: str, sets: Mapping[str, str], folder: Path) -> None:
        self._images, self._source, self._folder = images, source, folder
        self._prefixes = [(image_prefix(name), _ends(root)) for name, root in sets.items()]
        # Most datasets have one set: its images are found with one look-up.
        self._only_prefix = self._prefixes[0][0] if len(self._prefixes) == 1 and not self._prefixes[0][1] else None
        self._roots = _absolute_roots(folder, [prefix for prefix, _ in self._prefixes])
        self._notes: list[Note] = []
        self._archives: list[str] | None = None
        self._linked: dict[str, str] | None = None

    @classmethod
    def from_raw(cls, images: ImageLookup, raw: RawFiles, source: str) -> "OwnImages":
        """The images of the source of a custom dataset, as fetch has listed it."""
        sets = raw.manifest(source)["image_sets"]
        link = raw.folder(source) / DATA_LINK
        folder = link.parent / os.readlink(link)
        return cls(images, source, {name: entry.get("root", "") for name, entry in sets.items()}, folder)

    def find(self, value: ImageValue, beside: str = "") -> ImageRef:
        """The image that a row gives.

        Args:
            value: by name, as bytes or by address.
            beside: the folder of the file of rows below `folder`, ending in "/", or "": names may be relative to it.

        Raises:
            RowError: missing_image, ambiguous_image, remote_image, unreadable_image, or unsafe_path.
        """
        if isinstance(value, ImageName):
            return self._images.at(self._source, self._by_name(value.name, beside))
        if isinstance(value, ImageBytes):
            return self._images.at(self._source, self._by_bytes(value.data))
        return self._images.at(self._source, self._by_address(value.url))

    def take_notes(self) -> list[Note]:
        """The notes since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _by_bytes(self, data: bytes) -> int:
        path = embedded_path(data)
        row = self._images.of(self._source).row(path)
        if row is None:
            self._images.count_missing(self._source, path)
            raise RowError("missing_image", f"an image of {len(data)} bytes in the row is not listed: fetch again")
        return row

    def _by_address(self, url: str) -> int:
        """The number of the downloaded image of an address."""
        if rows := self._images.of(self._source).derived_rows(stem, downloaded_stem(url)):
            return rows[0]
        self._images.count_missing(self._source, url)
        if re.match(r"https?://", url, re.IGNORECASE):
            way = f"`{DOWNLOAD}` downloads the images of all rows into a folder below `folder`"
        else:
            way = "only http and https can be downloaded: copy the images below `folder` and write their paths"
        raise RowError("remote_image", f"{_short(url)} is not downloaded while data is built; {way}")

    def _by_name(self, name: str, beside: str) -> int:
        """The number of the image of a name."""
        if ".." in name:
            _check_inside(name, name)
        row = self._exact(name, beside)
        if row is not None:
            return row
        plain = tidy(self._relative(name))
        if plain != name and (row := self._exact(plain, beside)) is not None:
            return row
        for spelling in dict.fromkeys((plain, tidy(unquote(plain)))):
            _check_inside(spelling, name)
            row = self._exact(spelling, beside)
            if row is None:
                row = self._loosely(spelling, beside)
            if row is not None:
                self._notes.append(Note(LOOSELY, f"{self._path(row)} for {_short(name)}"))
                return row
        raise self._missing(name, plain, beside)

    def _exact(self, name: str, beside: str) -> int | None:
        """The number of the image at the path `name`, or None.

        Raises:
            RowError: ambiguous_image (several sets of images have one).
        """
        images = self._images.of(self._source)
        if self._only_prefix is not None and not beside:
            row = images.row(self._only_prefix + name)
            return images.row(name) if row is None else row
        found: list[int] = []
        for prefix, roots in self._prefixes:
            inside = [images.row(prefix + name[len(root) :]) for root in roots if name.startswith(root)]
            row = next((each for each in inside if each is not None), None)
            if row is None:
                row = images.row(prefix + name)
            if row is not None and row not in found:
                found.append(row)
        if beside and (row := images.row(beside + name)) is not None and row not in found:
            found.append(row)
        if len(found) > 1:
            raise self._ambiguous(name, found)
        return found[0] if found else images.row(name)

    def _loosely(self, name: str, beside: str) -> int | None:
        """The number of the only image whose path is another spelling of `name`, or None.

        Raises:
            RowError: ambiguous_image (there are several).
        """
        spelling = loose(name)
        paths = {loose(prefix + spelling) for prefix in ("", beside, *(prefix for prefix, _ in self._prefixes))}
        for prefix, roots in self._prefixes:
            for root in map(loose, roots):
                if spelling.startswith(root):
                    paths.add(loose(prefix) + spelling[len(root) :])
        images = self._images.of(self._source)
        found = {row for path in sorted(paths) for row in images.derived_rows(loose, path)}
        if len(found) > 1:
            raise self._ambiguous(name, sorted(found))
        return found.pop() if found else None

    def _relative(self, name: str) -> str:
        """An absolute path relative to `folder`; others as they are.

        Raises:
            RowError: unsafe_path (it does not lie below `folder`).
        """
        path = name.replace("\\", "/") if _WINDOWS.match(name) else name
        if not path.startswith("/") and not _WINDOWS.match(name):
            return name
        for candidate in (tidy(path), *([] if _WINDOWS.match(name) else [_resolved(tidy(path))])):
            for root, prefix in self._roots:
                if candidate.startswith(root):
                    return prefix + candidate[len(root) :]
        folder, base = posixpath.split(_resolved(path))
        if (linked := self._linked_folders().get(folder)) is not None:
            return posixpath.join(linked, base)
        meant = self._ends_like(path) if self._images.count_missing(self._source, name) else []
        raise RowError(
            "unsafe_path",
            f"{_short(name)} does not lie below the dataset's `folder`, where all of its images must be"
            + (f"; there is {', '.join(meant[:CANDIDATES])}: meant?" if meant else ""),
        )

    def _linked_folders(self) -> dict[str, str]:
        """Where the folders of images really are, by links to other disks -> their paths below `folder`."""
        if self._linked is None:
            folders = sorted({posixpath.dirname(path) for path in self._images.of(self._source).texts()})
            self._linked = {os.path.realpath(self._folder / folder): folder for folder in reversed(folders)}
        return self._linked

    def _missing(self, name: str, plain: str, beside: str) -> RowError:
        """The error for a name without an image; it shows what may have been meant."""
        explained = self._images.count_missing(self._source, plain)
        rows = self._images.of(self._source).derived_rows(loose_name, loose_name(plain))
        ends = [self._path(row) for row in rows if f"/{loose(self._path(row))}".endswith(f"/{loose(plain)}")]
        if len(ends) > 1:
            return self._ambiguous(name, [row for row in rows if self._path(row) in ends])
        if ends:
            return RowError("missing_image", f"{_short(name)}; there is {ends[0]}: meant?")
        if not explained:
            return RowError("missing_image", _short(name))
        if others := [self._path(row) for row in rows[:CANDIDATES]]:
            return RowError("missing_image", f"{_short(name)}; others with its name are {', '.join(others)}")
        if self._is_file(plain, beside):
            return RowError("missing_image", f"{_short(name)} is there, but is not an image of a format that is read")
        near = self._nearest(plain)
        hints = [f"the nearest names are {', '.join(near)}"] if near else []
        if archives := self._unread_archives():
            hints.append(f"{', '.join(archives)} may hold it: name the archive as `images`")
        return RowError("missing_image", "; ".join((_short(name), *hints)))

    def _is_file(self, name: str, beside: str) -> bool:
        """Whether there is a file of that name, which fetch has not listed as an image."""
        folders = dict.fromkeys((*(prefix for prefix, _ in self._prefixes), beside, ""))
        try:
            return any((self._folder / folder / name).is_file() for folder in folders)
        except (OSError, ValueError):
            return False

    def _ambiguous(self, name: str, rows: list[int]) -> RowError:
        self._images.count_missing(self._source, name)
        paths = ", ".join(self._path(row) for row in rows[:CANDIDATES])
        more = f" and {len(rows) - CANDIDATES} more" if len(rows) > CANDIDATES else ""
        return RowError("ambiguous_image", f"{_short(name)} may be any of {paths}{more}")

    def _ends_like(self, path: str) -> list[str]:
        """The paths of images that an absolute path ends with."""
        rows = self._images.of(self._source).derived_rows(loose_name, loose_name(path))
        return [each for each in map(self._path, rows) if loose(path).endswith(f"/{loose(each)}")]

    def _nearest(self, name: str) -> list[str]:
        """Paths of images whose file names resemble that of `name`."""
        by_name: dict[str, str] = {}
        for path in islice(self._images.of(self._source).texts(), _MOST_COMPARED):
            by_name.setdefault(loose_name(path), path)
        return [by_name[near] for near in difflib.get_close_matches(loose_name(name), by_name, 3, 0.75)]

    def _unread_archives(self) -> list[str]:
        """Archives in the dataset's folder, for a dataset whose images are not in archives."""
        if self._archives is None:
            try:
                entries = [entry.name for entry in islice(os.scandir(self._folder), _MOST_ENTRIES)]
            except OSError:
                entries = []
            used = {prefix.rstrip("/") for prefix, _ in self._prefixes}
            named = [name for name in sorted(entries) if is_archive(name) and name.partition(".")[0] not in used]
            self._archives = named[:CANDIDATES]
        return self._archives

    def _path(self, row: int) -> str:
        return self._images.of(self._source).path(row)


def _ends(root: str) -> tuple[str, ...]:
    """A folder, and the ends of its path, to which names may be relative as well: "a/b/", "b/"; the longest first."""
    parts = root.split("/")[:-1]
    return tuple("/".join(parts[first:]) + "/" for first in range(len(parts)))


def _absolute_roots(folder: Path, prefixes: list[str]) -> list[tuple[str, str]]:
    """Absolute paths of the folders of images, ending in "/", and what replaces them, the longest first.

    Each also with all links followed: rows may have either path.
    """
    roots: dict[str, str] = {}
    for prefix in dict.fromkeys((*prefixes, "")):
        path = os.path.join(os.path.abspath(folder), prefix)
        for each in (posixpath.normpath(path), os.path.realpath(path)):
            roots.setdefault(each.rstrip("/") + "/", prefix)
    return sorted(roots.items(), key=lambda item: -len(item[0]))


@lru_cache(1 << 14)
def _resolved_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _resolved(path: str) -> str:
    """An absolute path, the links of its folder followed."""
    folder, name = posixpath.split(path)
    try:
        return posixpath.join(_resolved_folder(folder), name)
    except (OSError, ValueError):
        return path


def _check_inside(path: str, name: str) -> None:
    """Raise RowError if a path has a part "..": it may lead out of the folder."""
    if ".." in _SEPARATORS.split(path):
        raise RowError("unsafe_path", f"{_short(name)} contains '..': write the path below the folder of images")


def _short(name: str) -> str:
    """A name in an example."""
    return name if len(name) <= _SHOWN and name.isprintable() else f"{name!r:.{_SHOWN}}"
