"""The images inside of rows of own data, as bytes, base64 or data URLs: listed by fetch, read by shard.

Both read the rows as `convert` does, so that exactly the images are listed for which it will look. This module is
loaded by name for sources of own data, so that other sources do not depend on the code of forms.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation_reader import RowReader
from scripts.adapters.own.image_values import ImageBytes
from scripts.adapters.own.row_source import rows_of_file
from scripts.adapters.raw import Broken, Note, RawRow
from scripts.config.custom import OwnRowsConfig
from scripts.media.containers import EMBEDDED, ImageEntry
from scripts.media.hashed_names import embedded_path, hash_of


class EmbeddedImages:
    """The images inside of the rows of one custom dataset.

    Args:
        folder: of the dataset.
        dataset: its entry in the manifest.
        annotations: the files of rows in the manifest.

    Attributes:
        names_images: whether a row that was read names an image, instead of holding it.
    """

    def __init__(self, folder: Path, dataset: dict[str, Any], annotations: dict[str, dict[str, Any]]) -> None:
        self._folder, self._dataset = folder, dataset
        self._layouts = {file: layout for layout in annotations.values() for file in layout["found"]}
        self._reader = RowReader(OwnRowsConfig.model_validate(dataset["own"]))
        self.names_images = False

    def entries(self) -> Iterator[ImageEntry]:
        """Every image inside of a row once, with the first row that has it."""
        listed: set[int] = set()
        for file in sorted(self._layouts):
            for number, row in enumerate(self._rows(file)):
                for data in self._images(row):
                    path = embedded_path(data)
                    identity = hash_of(path)
                    if identity not in listed:
                        listed.add(identity)
                        yield ImageEntry(path, file, EMBEDDED, number, len(data))

    def in_rows(self, file: str, numbers: Collection[int]) -> Iterator[bytes]:
        """The bytes of all images in the rows of `file` with these numbers, counted from 0."""
        if not numbers:
            return
        last = max(numbers)
        for number, row in enumerate(self._rows(file)):
            if number in numbers:
                yield from self._images(row)
            if number == last:
                return

    def _rows(self, file: str) -> Iterator[RawRow]:
        notes: list[Note] = []
        # The hash of the file is checked by convert, that of every image where it is read.
        for row in rows_of_file(self._folder / file, file, self._layouts[file], self._dataset, None, notes):
            notes.clear()  # convert counts them
            yield row

    def _images(self, row: RawRow) -> Iterator[bytes]:
        """The images of a row; none if convert will drop the row."""
        if isinstance(row.value, Broken):
            return
        try:
            conversation = self._reader.read(row.value)
        except RowError:
            return
        for value in conversation.image_values():
            if isinstance(value, ImageBytes):
                yield value.data
            else:
                self.names_images = True
