"""The raw files of a source as fetch has found them, and the rows of its annotation files.

`raw/<source>/` holds `source.json` (the card: what was found, where, under which terms), `files.parquet` (every file
with its hash), `images.parquet` (every image, wherever it is stored) and `files`, a link to the data path. The later
steps read these and never the registry, so that a source they do not use cannot concern them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.common.errors import UserError
from scripts.common.files import read_json, read_table
from scripts.media.containers import embedded_id, image_bytes

FILES = "files"
LISTING = "files.parquet"
IMAGES = "images.parquet"
CARD = "source.json"

LISTING_SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())])
IMAGES_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("container", pa.string()),
        ("kind", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("crc", pa.int64()),
        ("fault", pa.string()),
    ]
)


class Note(NamedTuple):
    """Something worth counting that loses no row."""

    reason: str
    example: str


class RawRow(NamedTuple):
    """A row and its id: the key in a file that is an object, else `<number>` counted from 0."""

    id: str
    value: Any


class Broken(NamedTuple):
    """Stands for a row that could not be parsed."""

    reason: str
    detail: str


class RawFiles:
    """The raw files of the sources that a dataset reads.

    Attributes:
        folders: `raw/<source>` of each source, as fetch wrote it.
        rows_read: rows handed out so far.
        notes: what was odd about the files as a whole.
    """

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = {source: Path(folder) for source, folder in folders.items()}
        self.rows_read = 0
        self.notes: list[Note] = []
        self._cards: dict[str, dict] = {}

    def rows(self, path: str) -> list[RawRow]:
        """All rows of the annotation file that is known as `path` (below the data path), in whatever form it is there.

        Raises:
            UserError: fetch has not found it, or it has changed, is damaged, is laid out in another way, or has no
            rows.
        """
        source, found = self._annotation(path)
        rows: list[RawRow] = []
        for form in found["found"]:
            place, listed = self.folder(source) / FILES / form, self._listed(source, form)
            if place.suffix == ".parquet":
                rows += parquet_rows(place, listed["bytes"])
            else:
                rows += read_rows(read_listed(place, listed["sha256"]), place, found, self.notes)
        self.rows_read += len(rows)
        return rows

    def form(self, path: str) -> str:
        """The file in which the rows of `path` were found: itself, or one of its other forms."""
        return self._annotation(path)[1]["found"][0]

    def optional_json(self, path: str) -> Any:
        """The value of a JSON file that need not be there; None where it is not."""
        for source in self.folders:
            if path in self.card(source)["optional_files"]:
                return read_json(self.folder(source) / FILES / path)
        return None

    def folder(self, source: str) -> Path:
        """`raw/<source>`.

        Raises:
            UserError: it was not given.
        """
        if source not in self.folders:
            raise UserError(f"the source {source!r} is needed: add --raw {source}=FOLDER (as written by scripts.fetch)")
        return self.folders[source]

    def card(self, source: str) -> dict:
        """What fetch found out about `source`."""
        if source not in self._cards:
            self._cards[source] = read_json(self.folder(source) / CARD)
        return self._cards[source]

    def _annotation(self, path: str) -> tuple[str, dict]:
        for source in self.folders:
            if path in self.card(source)["annotations"]:
                return source, self.card(source)["annotations"][path]
        raise UserError(
            f"{path} is not there: none of the sources {sorted(self.folders)} has it. Fetch its source again, with "
            "this file required, and add it with --raw SOURCE=FOLDER"
        )

    def _listed(self, source: str, path: str) -> dict:
        listing = read_table(self.folder(source) / LISTING)
        return listing.slice(listing["path"].to_pylist().index(path), 1).to_pylist()[0]


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
        raise changed(place)
    return data


def changed(place: Path) -> UserError:
    """The error for a raw file that is not what fetch has listed."""
    return UserError(f"{place} has changed since it was fetched: fetch again")


def read_rows(data: bytes, place: Path, found: Mapping[str, Any], notes: list[Note]) -> list[RawRow]:
    """Parse the annotation file at `place`; a key that occurs twice in an object of rows gives two rows.

    `found` names its `container` and `key`, as the registry does. Bytes that are not UTF-8 become half characters, so
    that only the rows which hold them are lost. What is odd is added to `notes`.

    Raises:
        UserError: not JSON (with the line), laid out in another way, or without rows.
    """
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if found["container"] == "lines" or place.suffix == ".jsonl":
        rows = list(_lines(text, place, notes))
        if not rows:
            raise UserError(f"{place} has no rows: it is empty. Get the file again, or leave the dataset out")
        return rows
    parse = _Parser()
    try:
        value = json.loads(text, object_pairs_hook=parse.object)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{place} is not valid JSON: {error}. The file is damaged: get it again") from None
    notes += [Note("duplicate_key", f"{place.name}: {key!r:.80} stands twice in one object") for key in parse.doubled]
    where, key, container = "the top level", found["key"], found["container"]
    if container == "any":
        value = _only_list(value)
    elif key is not None:
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{place} should be a JSON object with the member {key!r}")
        value, where = value[key], f"its member {key!r}"
    if not isinstance(value, dict if container == "dict" else list):
        expected = "an object of rows by id" if container == "dict" else "a list of rows"
        raise UserError(f"{place}: {where} should be {expected}, it is of type {type(value).__name__}")
    if not value:
        raise UserError(f"{place} has no rows: {where} is empty. Get the file again, or leave the dataset out")
    if isinstance(value, list):
        return [RawRow(str(number), row) for number, row in enumerate(value)]
    return [RawRow(key, row) for key, row in (value.pairs if isinstance(value, _Repeated) else value.items())]


def _only_list(value: Any) -> Any:
    """The rows of a file whose layout is not known: the list that it is, or the only list among its members."""
    lists = [member for member in value.values() if isinstance(member, list)] if isinstance(value, dict) else []
    return lists[0] if len(lists) == 1 else value


class _Repeated(dict):
    """A JSON object in which a key occurs more than once; `pairs` has them all."""

    pairs: list[tuple[str, Any]]


class _Parser:
    """Builds JSON objects and remembers keys that occur twice in one of them."""

    def __init__(self) -> None:
        self.doubled: list[str] = []

    def object(self, pairs: list[tuple[str, Any]]) -> dict:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        value = _Repeated(value)
        value.pairs = pairs
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                self.doubled.append(key)
            seen.add(key)
        return value


def _lines(text: str, place: Path, notes: list[Note]) -> Iterator[RawRow]:
    """Rows of a file with one JSON value per line; a line that is none is a broken row."""
    for number, line in enumerate(text.split("\n")):
        if not line.strip():
            continue
        parse = _Parser()
        try:
            yield RawRow(str(number), json.loads(line, object_pairs_hook=parse.object))
        except (json.JSONDecodeError, RecursionError) as error:
            yield RawRow(str(number), Broken("invalid_json", str(error)))
        doubled = (f"{place.name} line {number + 1}: {key!r:.80} stands twice in one object" for key in parse.doubled)
        notes += [Note("duplicate_key", example) for example in doubled]


def parquet_rows(place: Path, size: int) -> list[RawRow]:
    """Instructions of MIMIC-IT in a Parquet file, with the members that they have in JSON.

    Images are ids (a list of texts), or the images themselves, which then are named by a hash of their bytes as the
    listing of images names them. Rows of any other table have their columns as members.

    Raises:
        UserError: the file has not `size` bytes any more, is damaged, or has no rows.
    """
    if place.stat().st_size != size:
        raise changed(place)
    try:
        with pq.ParquetFile(place) as table:
            rows = [row for batch in table.iter_batches(16) for row in map(_instruction, batch.to_pylist())]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place} is damaged or cut off, get it again: {error}") from None
    if not rows:
        raise UserError(f"{place} has no rows: get the file again, or leave the dataset out")
    return [RawRow(str(row.get("id", number)), row) for number, row in enumerate(rows)]


def _instruction(row: dict) -> dict:
    if "instruction" not in row:
        return row
    images = row.pop("images", None)
    if isinstance(images, list):
        row["image_ids"] = [embedded_id(image_bytes(each)) if isinstance(each, dict) else each for each in images]
    if "related instructions" in row:
        row["rel_ins_ids"] = row.pop("related instructions")
    return row
