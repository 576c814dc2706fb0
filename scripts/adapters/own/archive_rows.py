"""Rows in archives: the samples of WebDataset tars, and files of rows inside of tars and zips. Nothing is unpacked.

A sample is the files of a tar that lie one after the other and share a name up to its first dot. It becomes a row with
its `__key__`: the members of its `json` file, text files as texts, and all other files as bytes, each under its
extension.
"""

import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from scripts.adapters.own.byte_streams import beginning, unreadable
from scripts.adapters.own.json_rows import no_rows
from scripts.adapters.raw import BYTE_ORDER_MARK, Broken, Note, RawRow, parsed
from scripts.common.errors import UserError
from scripts.common.text_set import TextSet
from scripts.media.tar_members import entries, open_tar

KEY = "__key__"
MAX_SAMPLE = 1 << 28
"""Most bytes of the files of a sample."""

_TEXTS = frozenset({"txt", "text", "caption", "transcript", "question", "answer", "cls", "id"})
_HEAD = 4096
_LIST_OF_ROWS = re.compile(rb'\s*\[\s*\{\s*"(?!(?:role|from|content|value|type|human|user)")')
"""The beginning of a list of objects that are not turns of one conversation."""

ReadRows = Callable[[IO[bytes], str], Iterator[RawRow]]
"""Reads the rows of a file inside of an archive, from its bytes and its name."""
IsRows = Callable[[str], bool]
"""Whether a file has the name of one of rows."""


def tar_rows(
    stream: IO[bytes], file_path: Path, name: str, notes: list[Note], is_rows: IsRows, read: ReadRows
) -> Iterator[RawRow]:
    """The samples of a tar, and the rows of the files of rows in it, in its order.

    A JSON file belongs to a sample unless it is a list of objects that are no turns. A sample whose files do not lie
    together gives a `Broken` row for each of its parts but the first.

    Args:
        stream: the tar, not compressed.
        file_path: the file, for errors.
        name: of the file; rows of a file in it are of `NAME/PATH`.
        notes: keys that occur twice in an object are appended.
        is_rows: recognises files of rows.
        read: reads them.

    Raises:
        UserError: it is damaged or has no rows.
    """
    number, files = 0, 0
    sample = _Sample("", True, notes, name)
    keys = TextSet()
    with open_tar(stream, file_path) as archive:
        for member in entries(archive):
            if not member.isreg() or is_hidden_below(member.name):
                continue
            file = archive.extractfile(member)
            if file is None:
                continue
            head, content = beginning(file, _HEAD)
            key, extension = _split(member.name)
            if is_rows(member.name) and (extension != "json" or _LIST_OF_ROWS.match(head)):
                yield from read(content, f"{name}/{member.name}")
                files += 1
                continue
            if key != sample.key:
                if sample.key:
                    yield RawRow(str(number), sample.row(), name)
                    number += 1
                sample = _Sample(key, keys.add(key), notes, name)
            sample.add(extension, member.size, content)
    if sample.key:
        yield RawRow(str(number), sample.row(), name)
    elif not files:
        raise no_rows(file_path, "the archive has neither samples nor files of rows")


class _Sample:
    """The files of one sample of a tar."""

    def __init__(self, key: str, new: bool, notes: list[Note], name: str) -> None:
        self.key = key
        self._notes, self._name = notes, name
        self._row: dict[str, Any] = {KEY: key}
        self._size = 0
        self._broken = (
            None if new else Broken("split_sample", f"the files of {key!r:.80} do not lie one after the other")
        )

    def add(self, extension: str, size: int, content: IO[bytes]) -> None:
        """Add a file; a fault of one file is a fault of the sample."""
        self._size += size
        if self._size > MAX_SAMPLE:
            self._broken = Broken("too_large", f"the files of {self.key!r:.80} have more than {MAX_SAMPLE >> 20} MiB")
        if self._broken:
            return
        data = content.read(MAX_SAMPLE)
        kind = extension.rpartition(".")[2]
        if kind in _TEXTS or kind == "json":
            text = data.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
            self._add_text(extension, text, kind == "json")
        elif extension in self._row:
            self._broken = Broken("duplicate_member", f"{self.key}.{extension} occurs twice")
        else:
            self._row[extension] = data

    def _add_text(self, extension: str, text: str, is_json: bool) -> None:
        value: Any = text
        if is_json:
            try:
                value, builder = parsed(text)
            except (ValueError, RecursionError) as error:
                self._broken = Broken("invalid_json", f"{self.key}.{extension}: {error}")
                return
            self._notes += builder.notes(f"{self._name} {self.key}.{extension}")
        members = value if is_json and isinstance(value, dict) else {extension: value}
        repeated = sorted(members.keys() & self._row.keys())
        if repeated:
            self._broken = Broken("duplicate_member", f"the sample {self.key!r:.80} has {repeated[0]!r:.40} twice")
        self._row |= members

    def row(self) -> dict[str, Any] | Broken:
        """The row of the sample."""
        return self._broken or self._row


def _split(path: str) -> tuple[str, str]:
    """The key and the extension of a file of a tar: before and behind the first dot of its name."""
    folder, file = posixpath.split(path.removeprefix("./"))
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def zip_rows(file_path: Path, name: str, is_rows: IsRows, read: ReadRows) -> Iterator[RawRow]:
    """The rows of the files of rows in a zip, by their paths; rows of a file in it are of `NAME/PATH`.

    Raises:
        UserError: it is damaged or encrypted, or holds no files of rows.
    """
    try:
        with zipfile.ZipFile(file_path) as archive:
            members = sorted(zip_members(archive, is_rows), key=lambda member: member.filename)
            if not members:
                raise no_rows(file_path, "the archive holds no files of rows")
            for member in members:
                with archive.open(member) as content:
                    yield from read(content, f"{name}/{member.filename}")
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise unreadable(file_path, error) from None
    except NotImplementedError as error:
        raise UserError(f"{file_path} is compressed in a way that is not read ({error}): unpack it") from None
    except RuntimeError as error:
        if "encrypted" not in str(error):
            raise
        raise UserError(f"{file_path} is encrypted: unpack it") from None


def zip_members(archive: zipfile.ZipFile, is_rows: IsRows) -> Iterator[zipfile.ZipInfo]:
    """The files of rows in a zip."""
    for member in archive.infolist():
        if not member.is_dir() and not is_hidden_below(member.filename) and is_rows(member.filename):
            yield member


def is_hidden_below(path: str) -> bool:
    """Whether a path in an archive is hidden, or one of those that macOS adds."""
    parts = path.removeprefix("./").split("/")
    return any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"
