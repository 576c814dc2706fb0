"""The first rows of own data, and its images by name, as the steps of the graph see them after `fetch`.

`list_first_rows` writes what `fetch` writes, `raw/<source>`, into a temporary folder, but hashes no file and looks for
images inside of rows in the first rows only. So the adapter and its look-up of images run as in the graph.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import OwnConversation
from scripts.adapters.own.conversation_reader import RowReader
from scripts.adapters.own.image_values import ImageBytes
from scripts.adapters.own.row_source import found_rows, rows_of_file
from scripts.adapters.raw import DATA_LINK, SOURCE_MANIFEST, Broken, Note, RawFiles, RawRow
from scripts.common.atomic_folder import point_link
from scripts.common.files import write_json, write_table
from scripts.config.custom import CustomDatasetConfig, OwnRowsConfig
from scripts.config.registry import WHOLE_FOLDER, Dataset, Source, custom_dataset, custom_source, image_prefix
from scripts.fetching.found_images import FoundImages, find_images
from scripts.media.containers import FILE, STORED, ImageEntry, archive_root, list_container
from scripts.media.hashed_names import embedded_path
from scripts.media.image_check import check_image
from scripts.media.listing import IMAGES_TABLE, entries_table, image_listing
from scripts.media.opening import UnreadableImageError


class CurrentRow(NamedTuple):
    """The row that was read last: its name in messages, and what it means; None where it cannot be read."""

    origin: str
    value: Any
    conversation: OwnConversation | None


class FirstRows(RawFiles):
    """Raw files of one custom dataset of which only the first rows are read.

    Attributes:
        entry: of the dataset, with the files that were found.
        current: the row that was read last.
        counts: rows read of each file, and whether these are all.
    """

    def __init__(
        self, source: str, raw: Path, folder: Path, entry: Dataset, annotations: dict[str, dict[str, Any]], limit: int
    ) -> None:
        """Read up to `limit` rows of the files of `entry` below `folder`, as many of each.

        Args:
            source: the name of the dataset.
            raw: the folder `raw/<source>`.
            folder: of the dataset.
            entry: of the dataset, with the files that were found.
            annotations: of these files, as in the manifest of fetch.
            limit: rows of all files together.
        """
        super().__init__({source: raw})
        self.entry, self._folder, self._layouts = entry, folder, annotations
        self._share = max(1, limit // max(1, len(entry.files)))
        self._dataset = entry.model_dump(mode="json")
        self._reader = RowReader(entry.own or OwnRowsConfig())
        self.current = CurrentRow("", None, None)
        self.counts: dict[str, tuple[int, bool]] = {}

    def rows(self, path: str) -> Iterator[RawRow]:
        """The first rows of a file."""
        rows = rows_of_file(self._folder / path, path, self._layouts[path], self._dataset, None, self.notes)
        read = 0
        for row in islice(rows, self._share):
            read += 1
            self.rows_read += 1
            self.current = CurrentRow(f"{row.file or path} row {row.id}", row.value, self._read(row))
            yield row
        self.counts[path] = (read, next(rows, None) is None)

    def _read(self, row: RawRow) -> OwnConversation | None:
        if isinstance(row.value, Broken):
            return None
        try:
            return self._reader.read(row.value)
        except RowError:
            return None


class EmbeddedSpool:
    """The images inside of the first rows, by path in the listing, in a temporary file: a thousand may be large."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the object
        self._places: dict[str, tuple[int, int]] = {}
        self.entries: list[ImageEntry] = []

    def add(self, data: bytes) -> None:
        """Add an image, unless it was added before."""
        path = embedded_path(data)
        if path in self._places:
            return
        self._places[path] = (self._file.seek(0, os.SEEK_END), len(data))
        self._file.write(data)
        fault = ""
        try:
            check_image(data, path)
        except UnreadableImageError as error:
            fault = error.reason
        self.entries.append(ImageEntry(path, "", STORED, 0, len(data), fault=fault))

    def read(self, path: str) -> bytes | None:
        """The bytes of an image; None if there is none of this path."""
        if path not in self._places:
            return None
        start, length = self._places[path]
        self._file.seek(start)
        return self._file.read(length)


class FirstImages(NamedTuple):
    """Images of own data before they are checked: those of folders and archives, and those inside of rows."""

    listed: list[ImageEntry]
    embedded: EmbeddedSpool


def list_first_rows(
    name: str, config: CustomDatasetConfig, raw: Path, limit: int, see: Callable[[CurrentRow], None]
) -> tuple[FirstRows, FirstImages]:
    """List the files, images and first `limit` rows of a custom dataset in `raw`; `see` gets each of these rows.

    Raises:
        UserError: there are no rows or images where the configuration says, or a file is damaged.
    """
    folder = Path(config.folder)
    source, entry = custom_source(name, config), custom_dataset(name, config)
    archives = tuple(path for images in source.images for path in images.containers)
    entry, annotations, notes = found_rows(entry, folder, archives)
    embedded, names_images = _images_in(FirstRows(name, raw, folder, entry, annotations, limit), see)
    # As in fetch: without configured images, those below the folder count only if rows name any.
    places = [images for images in source.images if names_images or images.folder != WHOLE_FOLDER]
    sets = [_with_root(folder, find_images(source, folder, images)) for images in places]
    listed = [image for found in sets for image in _images_of(folder, found)]
    entries = [*listed, *embedded.entries]
    raw.mkdir(parents=True, exist_ok=True)
    write_table(raw / IMAGES_TABLE, image_listing(entries_table(entries)))
    point_link(folder.resolve(), raw / DATA_LINK)
    write_json(raw / SOURCE_MANIFEST, _manifest(source, entry, annotations, sets, notes))
    return FirstRows(name, raw, folder, entry, annotations, limit), FirstImages(listed, embedded)


def _manifest(
    source: Source, entry: Dataset, annotations: dict[str, dict[str, Any]], sets: list[FoundImages], notes: list[Note]
) -> dict[str, Any]:
    """What the adapter reads of the manifest of fetch."""
    return {
        "source": source.name,
        "provided_by": "data_path",
        "annotations": annotations,
        "image_sets": {found.folder: {"root": found.root} if found.root else {} for found in sets},
        "optional_files": [],
        "dataset": entry.model_dump(mode="json"),
        "notes": notes,
    }


def _with_root(folder: Path, found: FoundImages) -> FoundImages:
    return found._replace(root=archive_root([folder / path for path in found.containers]))


def _images_of(folder: Path, found: FoundImages) -> Iterator[ImageEntry]:
    """The images of a set, without their sizes where they are files."""
    yield from (ImageEntry(path, "", FILE, 0, 0) for path in found.separate)
    yield from (ImageEntry(path, "", FILE, 0, 0, fault=fault) for path, fault in found.faults.items())
    for container in found.containers:
        yield from list_container(folder / container, container, image_prefix(found.folder), found.root)


def _images_in(rows: FirstRows, see: Callable[[CurrentRow], None]) -> tuple[EmbeddedSpool, bool]:
    """The images inside of the first rows, and whether a row names an image."""
    found = EmbeddedSpool()
    names_images = False
    for path in rows.entry.files:
        for _ in rows.rows(path):
            see(rows.current)
            for value in rows.current.conversation.image_values() if rows.current.conversation else ():
                if isinstance(value, ImageBytes):
                    found.add(value.data)
                else:
                    names_images = True
    return found, names_images
