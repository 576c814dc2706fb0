"""The raw files of a source as fetch has listed them, and the rows of its annotation files.

`raw/<source>/` contains `source.json` (the manifest: what was found, where, under which terms), `files.parquet` (every
file with its hash), `images.parquet` (every image, however it is stored) and `files`, a link to the data path. The
later steps read these and never the registry, so that they do not depend on sources that they do not use.
"""

import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.media.containers import embedded_id, image_bytes
from scripts.media.listing import ListedFile, listed_files

DATA_LINK = "files"
SOURCE_MANIFEST = "source.json"
OWN = "own"
"""The container of files of custom datasets, whose form shows in each file itself."""
OWN_MODULES = OWN_ROWS, OWN_IMAGES, OWN_SPLITS = (
    "scripts.adapters.own.row_source",
    "scripts.adapters.own.embedded_images",
    "scripts.adapters.own.splits",
)
"""Loaded by name, so that published datasets do not depend on their code."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Note(NamedTuple):
    """Something worth counting in the report; no row is lost."""

    reason: str
    example: str


class RawRow(NamedTuple):
    """A row and its id: its key where the file is an object, else its number, from 0.

    `file` is the file that holds it, below the data path, for custom datasets; else "".
    """

    id: str
    value: Any
    file: str = ""


class Broken(NamedTuple):
    """The value of a row that could not be parsed."""

    reason: str
    detail: str


class RawFiles:
    """The raw files of the sources that a dataset reads.

    Attributes:
        folders: `raw/<source>` of each source, as written by fetch.
        rows_read: rows returned so far.
        notes: about the files as a whole.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = {source: Path(folder) for source, folder in folders.items()}
        self.rows_read = 0
        self.notes: list[Note] = []
        self._manifests: dict[str, dict[str, Any]] = {}

    def rows(self, path: str) -> Iterator[RawRow]:
        """All rows of the annotation file `path` (below the data path), from the file or files in which it was found.

        Files with one row per line are parsed while they are read, so that they may have millions.

        Raises:
            UserError: fetch has not found it, or a file has changed, is damaged, has another layout or no rows; of a
                file with one row per line only after its last row.
        """
        source, layout = self._annotation(path)
        for name in layout["found"]:
            file_path, listed = self.folder(source) / DATA_LINK / name, self._listed(source, name)
            if layout["container"] == OWN:
                dataset = self.manifest(source)["dataset"]
                rows = own_rows().rows_of_file(file_path, name, layout, dataset, listed.sha256, self.notes)
            else:
                rows = _rows(file_path, listed, layout, self.notes)
            for row in rows:
                self.rows_read += 1
                yield row

    def form(self, path: str) -> str:
        """The (first) file in which the rows of `path` were found: itself, or one of its alternatives."""
        return self._annotation(path)[1]["found"][0]

    def optional_json(self, path: str) -> Any:
        """The value of an optional JSON file; None if it does not exist."""
        for source in self.folders:
            if path in self.manifest(source)["optional_files"]:
                return read_json(self.folder(source) / DATA_LINK / path)
        return None

    def listed_notes(self) -> list[Note]:
        """Notes of fetch about the files of custom datasets."""
        return [Note(*note) for source in self.folders for note in self.manifest(source).get("notes", ())]

    def folder(self, source: str) -> Path:
        """`raw/<source>`.

        Raises:
            UserError: it was not given.
        """
        if source not in self.folders:
            raise UserError(f"the source {source!r} is needed: add --raw {source}=FOLDER (as written by scripts.fetch)")
        return self.folders[source]

    def manifest(self, source: str) -> dict[str, Any]:
        """The contents of `source.json`, as written by fetch."""
        if source not in self._manifests:
            self._manifests[source] = read_json(self.folder(source) / SOURCE_MANIFEST)
        return self._manifests[source]

    def _annotation(self, path: str) -> tuple[str, dict[str, Any]]:
        for source in self.folders:
            if path in self.manifest(source)["annotations"]:
                return source, self.manifest(source)["annotations"][path]
        raise UserError(
            f"{path} is not there: none of the sources {sorted(self.folders)} has it. Fetch its source again, with "
            "this file required, and add it with --raw SOURCE=FOLDER"
        )

    def _listed(self, source: str, path: str) -> ListedFile:
        return listed_files(self.folder(source), [path])[path]


def own_rows() -> Any:
    """The module that finds and reads the rows of custom datasets."""
    return importlib.import_module(OWN_ROWS)


def own_images() -> Any:
    """The module that finds and reads the images inside of the rows of custom datasets."""
    return importlib.import_module(OWN_IMAGES)


def own_splits() -> Any:
    """The module that keeps rows of custom datasets for evaluation."""
    return importlib.import_module(OWN_SPLITS)


def _rows(file_path: Path, listed: ListedFile, layout: Mapping[str, Any], notes: list[Note]) -> Iterable[RawRow]:
    if file_path.suffix == ".parquet":
        return parquet_rows(file_path, listed.bytes)
    if file_path.suffix == ".jsonl":
        return line_rows(file_path, listed.sha256, notes)
    return read_rows(read_listed(file_path, listed.sha256), file_path, layout, notes)


def read_listed(file_path: Path, sha256: str) -> bytes:
    """The bytes of a raw file, checked against the hash that fetch has listed.

    Raises:
        UserError: the file is missing or has changed.
    """
    try:
        data = file_path.read_bytes()
    except OSError as error:
        raise UserError(f"{file_path} cannot be read: {error.strerror}; was it moved? Fetch again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise changed(file_path)
    return data


def changed(file_path: Path) -> UserError:
    """The error for a raw file that differs from what fetch has listed."""
    return UserError(
        f"{file_path} has changed since it was fetched: fetch again (if the change is meant, `touch` the file and run "
        "the same command; otherwise restore it)"
    )


def read_rows(data: bytes, file_path: Path, layout: Mapping[str, Any], notes: list[Note]) -> list[RawRow]:
    """Parse the annotation file at `file_path`; a key that occurs twice in an object of rows gives two rows.

    Bytes that are not UTF-8 become lone surrogates, so that only the rows that contain them are lost.

    Args:
        data: of the file.
        file_path: for error messages.
        layout: `container` and `key` of the file, as in the registry.
        notes: duplicate keys are appended to it.

    Raises:
        UserError: the file is not JSON (with the line), has another layout or no rows.
    """
    text = data.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
    try:
        value, parser = parsed(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file_path} is not valid JSON: {error}. The file is damaged: get it again") from None
    notes += parser.notes(file_path.name)
    where, key, container = "the top level", layout["key"], layout["container"]
    if container == "any":
        value = _only_list(value)
    elif key is not None:
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{file_path} should be a JSON object with the member {key!r}")
        value, where = value[key], f"its member {key!r}"
    if not isinstance(value, dict if container == "dict" else list):
        expected = "an object of rows by id" if container == "dict" else "a list of rows"
        raise UserError(f"{file_path}: {where} should be {expected}, it is of type {type(value).__name__}")
    if not value:
        raise UserError(f"{file_path} has no rows: {where} is empty. Get the file again, or leave the dataset out")
    if isinstance(value, list):
        return [RawRow(str(number), row) for number, row in enumerate(value)]
    return [RawRow(key, row) for key, row in (value.pairs if isinstance(value, _RepeatedKeys) else value.items())]


class JsonParser:
    """Parses many JSON values with one decoder; integers may have any number of digits."""

    def __init__(self) -> None:
        self._builder = ObjectBuilder()
        self._decoder = json.JSONDecoder(object_pairs_hook=self._builder.object)
        # A function for every integer makes parsing slower, so it is used only where an integer is too long.
        self._slow = json.JSONDecoder(object_pairs_hook=self._builder.object, parse_int=integer)

    def decode(self, text: str) -> Any:
        """The JSON value that `text` is.

        Raises:
            json.JSONDecodeError: it is not JSON.
            RecursionError: it is nested too deeply.
        """
        value, end = self.decode_at(text, 0 if text[:1] in _VALUE_STARTS else len(text) - len(text.lstrip(_JSON_SPACE)))
        if end != len(text) and text[end:].strip(_JSON_SPACE):
            raise json.JSONDecodeError("Extra data", text, end)
        return value

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """The JSON value that begins at `start`, and where it ends; errors as of `decode`."""
        self._builder.repeated.clear()
        try:
            return self._decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except ValueError:
            self._builder.repeated.clear()
            return self._slow.raw_decode(text, start)

    @property
    def has_repeated(self) -> bool:
        """Whether a key occurred twice in an object of the last value."""
        return bool(self._builder.repeated)

    def notes(self, where: str) -> list[Note]:
        """A note for every key that occurred twice in an object of the last value; `where` names the file."""
        return self._builder.notes(where)


_JSON_SPACE = " \t\n\r"
_VALUE_STARTS = ("{", "[")


class HugeNumber:
    """In place of an integer with more digits than Python reads; of no type that a field may have."""


def parsed(text: str) -> tuple[Any, "ObjectBuilder"]:
    """The JSON value of a text, and the builder with its repeated keys; integers may have any number of digits.

    Raises:
        json.JSONDecodeError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    parser = ObjectBuilder()
    try:
        return json.loads(text, object_pairs_hook=parser.object), parser
    except json.JSONDecodeError:
        raise
    except ValueError:
        # An integer is too long. Only now: a function for every integer makes parsing slower.
        parser = ObjectBuilder()
        return json.loads(text, object_pairs_hook=parser.object, parse_int=integer), parser


def integer(digits: str) -> int | HugeNumber:
    """The integer with these digits, for `parse_int` of the json module."""
    try:
        return int(digits)
    except ValueError:
        return HugeNumber()


def _only_list(value: Any) -> Any:
    """The rows of a file with an unknown layout: the list that it is, or the only list among its members."""
    lists = [member for member in value.values() if isinstance(member, list)] if isinstance(value, dict) else []
    return lists[0] if len(lists) == 1 else value


class _RepeatedKeys(dict[str, Any]):
    """A JSON object in which a key occurs more than once; `pairs` has all of its members."""

    pairs: list[tuple[str, Any]]


class ObjectBuilder:
    """Builds JSON objects and collects the keys that occur twice in one of them."""

    def __init__(self) -> None:
        self.repeated: list[str] = []

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object with the members `pairs`, for `object_pairs_hook` of the json module."""
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        repeated = _RepeatedKeys(value)
        repeated.pairs = pairs
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                self.repeated.append(key)
            seen.add(key)
        return repeated

    def notes(self, where: str) -> list[Note]:
        """A note for every repeated key; `where` names the file."""
        return [Note("duplicate_key", f"{where}: {key!r:.80} occurs twice in one object") for key in self.repeated]


def line_rows(file_path: Path, sha256: str, notes: list[Note]) -> Iterator[RawRow]:
    """The rows of a file with one JSON value per line, as `read_rows`; a line that is not JSON gives a `Broken` row.

    Raises:
        UserError: the file is missing or has no rows or, after the last one, its hash is not `sha256`.
    """
    digest = hashlib.sha256()
    empty = True
    try:
        with open(file_path, "rb") as file:
            for number, data in enumerate(file):
                digest.update(data)
                line = data.removeprefix(b"" if number else BYTE_ORDER_MARK).removesuffix(b"\n")
                text = line.decode("utf-8", "surrogateescape")
                if not text.strip():
                    continue
                empty = False
                try:
                    value, parser = parsed(text)
                except (json.JSONDecodeError, RecursionError) as error:
                    yield RawRow(str(number), Broken("invalid_json", str(error)))
                    continue
                yield RawRow(str(number), value)
                notes += parser.notes(f"{file_path.name} line {number + 1}")
    except OSError as error:
        raise UserError(f"{file_path} cannot be read: {error.strerror}; was it moved? Fetch again") from None
    if digest.hexdigest() != sha256:
        raise changed(file_path)
    if empty:
        raise UserError(f"{file_path} has no rows: it is empty. Get the file again, or leave the dataset out")


def parquet_rows(file_path: Path, size: int) -> list[RawRow]:
    """The rows of a Parquet file; MIMIC-IT's instructions get the members that they have in JSON.

    Their images are ids (strings) or the images themselves, whose id then is a hash of their bytes, as in the table of
    images. Rows of any other table have their columns as members.

    Raises:
        UserError: the file no longer has `size` bytes, is damaged, or has no rows.
    """
    if file_path.stat().st_size != size:
        raise changed(file_path)
    try:
        with pq.ParquetFile(file_path) as table:
            rows = [row for batch in table.iter_batches(16) for row in map(_instruction, batch.to_pylist())]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file_path} is damaged or cut off, get it again: {error}") from None
    if not rows:
        raise UserError(f"{file_path} has no rows: get the file again, or leave the dataset out")
    return [RawRow(str(row.get("id", number)), row) for number, row in enumerate(rows)]


def _instruction(row: dict[str, Any]) -> dict[str, Any]:
    if "instruction" not in row:
        return row
    images = row.pop("images", None)
    if isinstance(images, list):
        row["image_ids"] = [embedded_id(image_bytes(each)) if isinstance(each, dict) else each for each in images]
    if "related instructions" in row:
        row["rel_ins_ids"] = row.pop("related instructions")
    return row
