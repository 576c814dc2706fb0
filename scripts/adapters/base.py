"""What every adapter works with: raw rows, images by path, and the ways in which a row can fail.

An adapter is a module with one function, `records(raw, images)`. It yields

    Record     a conversation
    Dropped    raw rows that cannot be used, with a reason
    Noted      something that was repaired or is worth counting; no row is lost

so that every raw row is accounted for. Inside an adapter a bad row raises `RowFault`; `each_row` turns it into a
`Dropped`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.media.store import INDEX, REJECTED
from scripts.records_schema import RESERVED, ImageName, Record
from scripts.sources import SOURCES, AnnotationFile, users_of

LISTING = "files.parquet"
FILES = "files"
CARD = "source.json"


class Dropped(NamedTuple):
    """Raw rows that are not used; `example` says which, and what exactly was wrong."""

    reason: str
    example: str
    rows: int = 1


class Noted(NamedTuple):
    """Something worth counting that loses no row."""

    reason: str
    example: str


class RowFault(Exception):
    """The row at hand cannot be used.

    Args:
        reason: a word of the report: missing_image, bad_row, empty_text, ...
        detail: what exactly, for the example.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class RawRow(NamedTuple):
    """A row and its id: the key in a file that is an object, else `<number>` counted from 0."""

    id: str
    value: Any


class _Repeated(dict):
    """A JSON object in which a key occurs more than once; `pairs` has them all."""

    pairs: list[tuple[str, Any]]


def _object(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        value = _Repeated(value)
        value.pairs = pairs
    return value


class Raw:
    """The raw files of the sources that a dataset reads.

    Attributes:
        folders: `raw/<source>` of each source, as fetch wrote it.
        rows_read: rows handed out so far.
    """

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = folders
        self.rows_read = 0

    def rows(self, path: str) -> list[RawRow]:
        """All rows of the annotation file at `path` (below the data path).

        Raises:
            UserError: the file is absent or has changed, is not JSON, is laid out in another way, or has no rows.
        """
        source, file = _registered(path)
        place = self.folder(source) / FILES / path
        listed = pq.read_table(self.folder(source) / LISTING, filters=[("path", "=", path)]).to_pylist()
        if not listed:
            raise missing(source, path, place)
        rows = read_rows(read_listed(place, listed[0]["sha256"]), place, file)
        self.rows_read += len(rows)
        return rows

    def folder(self, source: str) -> Path:
        """`raw/<source>`.

        Raises:
            UserError: it was not given.
        """
        if source not in self.folders:
            raise UserError(f"the source {source!r} is needed: add --raw {source}=FOLDER (as written by scripts.fetch)")
        return Path(self.folders[source])

    def card(self, source: str) -> dict:
        """What fetch found out about `source`."""
        return read_json(self.folder(source) / CARD)


def _registered(path: str) -> tuple[str, AnnotationFile]:
    for source in SOURCES.values():
        for file in source.files:
            if file.path == path:
                return source.name, file
    raise KeyError(path)


def missing(source: str, path: str, place: Path) -> UserError:
    """The error for a raw file or folder that is not there."""
    return UserError(
        f"source {source!r}: {path} is not there (looked at {place}). It is needed by "
        f"{', '.join(users_of(source, path))}. To get it: {SOURCES[source].how_to_get}; paths are below your data path"
    )


def read_listed(place: Path, sha256: str) -> bytes:
    """The bytes of a raw file, which must be those that fetch has listed.

    Raises:
        UserError: the file is gone or has changed.
    """
    try:
        data = place.read_bytes()
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}; was it moved? Fetch again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{place} has changed since it was fetched: fetch again")
    return data


def read_rows(data: bytes, place: Path, file: AnnotationFile) -> list[RawRow]:
    """Parse the annotation file at `place`; a key that occurs twice in an object of rows gives two rows.

    Raises:
        UserError: not JSON (with the line), laid out in another way, or without rows.
    """
    try:
        value = json.loads(data, object_pairs_hook=_object)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{place} is not valid JSON: {error}. The file is damaged: get it again") from None
    where = "the top level"
    if file.key is not None:
        if not isinstance(value, dict) or file.key not in value:
            raise UserError(f"{place} should be a JSON object with the member {file.key!r}")
        value, where = value[file.key], f"its member {file.key!r}"
    if not isinstance(value, list if file.container == "list" else dict):
        expected = "a list of rows" if file.container == "list" else "an object of rows by id"
        raise UserError(f"{place}: {where} should be {expected}, it is of type {type(value).__name__}")
    if not value:
        raise UserError(f"{place} has no rows: {where} is empty. Get the file again, or leave the dataset out")
    if isinstance(value, list):
        return [RawRow(str(number), row) for number, row in enumerate(value)]
    return [RawRow(key, row) for key, row in (value.pairs if isinstance(value, _Repeated) else value.items())]


class Images:
    """The images that conversations may use, found by their path below the data path.

    Attributes:
        named: paths that were asked for.
        found: those of them that can be used.
    """

    def __init__(self, keys: Mapping[str, Mapping[str, str]], rejected: Mapping[str, Mapping[str, str]]):
        self._keys, self._rejected = keys, rejected
        self.named: set[str] = set()
        self.found: set[str] = set()

    @classmethod
    def of_media(cls, folders: Mapping[str, Path]) -> "Images":
        """The images of media folders: those that could be read."""
        keys, rejected = {}, {}
        for source, folder in folders.items():
            try:
                index = pq.read_table(Path(folder) / INDEX, columns=["path", "key"])
                bad = pq.read_table(Path(folder) / REJECTED, columns=["path", "reason"])
            except FileNotFoundError as error:
                raise UserError(f"{error.filename or folder} does not exist: run shard and index first") from None
            keys[source] = dict(zip(index["path"].to_pylist(), index["key"].to_pylist(), strict=True))
            rejected[source] = dict(zip(bad["path"].to_pylist(), bad["reason"].to_pylist(), strict=True))
        return cls(keys, rejected)

    @classmethod
    def of_listing(cls, raw: Raw, sources: Iterable[str]) -> "Images":
        """The images that are in the raw folders, readable or not: for judging data before images are read."""
        listed = {source: pq.read_table(raw.folder(source) / LISTING, columns=["path"])["path"] for source in sources}
        return cls({source: {path: path for path in paths.to_pylist()} for source, paths in listed.items()}, {})

    def find(self, source: str, *paths: str) -> ImageName:
        """The image of `source` at the first of `paths` where there is one.

        Raises:
            RowFault: missing_image, or unreadable_image with the reason why it was rejected.
        """
        if source not in self._keys:
            raise UserError(f"images of {source!r} are needed: add --media {source}=FOLDER (made by scripts.index)")
        keys, rejected = self._keys[source], self._rejected.get(source, {})
        path = next((path for path in paths if path in keys or path in rejected), paths[0])
        self.named.add(path)
        if path in rejected:
            raise RowFault("unreadable_image", f"{path} ({rejected[path]})")
        if path not in keys:
            raise RowFault("missing_image", path)
        self.found.add(path)
        return ImageName(source, keys[path])


def each_row(
    rows: Iterable[RawRow], convert: Callable[[RawRow], Iterable[Record | Noted]], label: str
) -> Iterator[Record | Dropped | Noted]:
    """Convert `rows` one by one; a row that raises `RowFault` is dropped. `label` names the file in examples."""
    for row in rows:
        try:
            yield from list(convert(row))
        except RowFault as fault:
            yield Dropped(fault.reason, f"{label} row {row.id}: {fault.detail}")


_PLACEHOLDER = re.compile(r"\n?[ \t]*<image>[ \t]*\n?")


def text(value: Any, name: str) -> str:
    """`value` as clean text: without image placeholders, stripped.

    Raises:
        RowFault: bad_row (not text), reserved_text, empty_text.
    """
    if not isinstance(value, str):
        raise RowFault("bad_row", f"{name} is not text but {type(value).__name__}")
    if RESERVED in value:
        raise RowFault("reserved_text", f"{name} holds {RESERVED!r}, which names images in our own records")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowFault("bad_row", f"{name} is not valid Unicode") from None
    while "<image>" in value:
        value = _PLACEHOLDER.sub(lambda match: "\n" if "\n" in match[0] else " ", value)
    value = value.strip()
    if not value:
        raise RowFault("empty_text", f"{name} is empty")
    return value


def field(row: Any, name: str, *kinds: type) -> Any:
    """The member `name` of a row, which must be of one of the types `kinds`.

    Raises:
        RowFault: bad_row.
    """
    if not isinstance(row, dict):
        raise RowFault("bad_row", f"not an object but {type(row).__name__}")
    if name not in row:
        raise RowFault("bad_row", f"no field {name!r}")
    # To Python a truth value is a whole number.
    if not isinstance(row[name], kinds) or isinstance(row[name], bool):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise RowFault("bad_row", f"{name!r} is not of type {wanted} but {type(row[name]).__name__}")
    return row[name]


_STEM = re.compile(r"[A-Za-z0-9_-]{1,100}")


def file_stem(name: str | int) -> str:
    """`name`, an image's id in a row, as the name of a file without its ending.

    Raises:
        RowFault: bad_row (a path, or something else that cannot be such a name).
    """
    if not _STEM.fullmatch(str(name)):
        raise RowFault("bad_row", f"{str(name)!r:.80} is not the id of an image")
    return str(name)


def coco_path(number: int | str, folder: str = "train2017") -> str:
    """Where the image with a COCO id lies below the data path, in one of the folders of COCO 2017.

    Raises:
        RowFault: bad_row (not a COCO id).
    """
    if isinstance(number, bool) or not str(number).isdecimal() or not str(number).isascii():
        raise RowFault("bad_row", f"{number!r} is not a COCO image id")
    return f"coco/{folder}/{int(number):012d}.jpg"
