"""Rows of JSON, one at a time: a list, an object with one list, JSON lines, or JSON values one after the other.

Which of these a file is shows in its content; its name decides only what is left open: a file with nothing but one
object is a row where the name is one of JSON lines, and the object that holds the list of rows where it is not.

A list is parsed from a window of the text that grows until it holds the next element, so that memory depends on the
longest row and not on the file. Bytes that are not UTF-8 become lone surrogates, which cost only the rows that have
them.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from scripts.adapters.own.byte_streams import COMPRESSIONS, beginning
from scripts.adapters.raw import Broken, JsonParser, Note, RawRow, parsed
from scripts.common.errors import UserError

LINE_ENDINGS = (".jsonl", ".ndjson", ".jsonlines")
"""Endings of files with one JSON value per line."""
MAX_ROW = 1 << 28
"""Most bytes of a line, and most characters of an element of a list."""
TURNS = ("messages", "conversations", "conversation")
"""Members that hold a list of turns, so that an object with one of them is a row and not a list of rows."""

_HEAD = 1 << 20
_LONG_LINE = 16 << 20
"""How much of a text is looked at to recognise its form, and how much where its first line is longer than that."""
_WINDOW = 1 << 20
_SHOWN_LINES = 20
_MARGIN = 16
"""How far before the end of a window an error may lie that the end has caused; the longest is in `-Infinity`."""
_SPACE = re.compile(r"[ \t\n\r]*")


def json_rows(stream: IO[bytes], file_path: Path, name: str, notes: list[Note]) -> Iterator[RawRow]:
    """The rows of a text in UTF-8, with their numbers as ids: of the line, or in the list, from 0.

    A line that is not JSON gives a `Broken` row; a list ends at its first error.

    Args:
        stream: the text.
        file_path: the file, for errors.
        name: of the file, for rows and notes; its ending counts where the content leaves the form open.
        notes: keys that occur twice in an object are appended.

    Raises:
        UserError: it is not JSON, holds no list of rows, or no rows.
    """
    head, stream = beginning(stream, _HEAD)
    whole = len(head) < _HEAD
    if not whole and b"\n" not in head:
        head, stream = beginning(stream, _LONG_LINE)
        whole = len(head) < _LONG_LINE
    text = head.decode("utf-8", "surrogateescape")
    if whole and not text.strip():
        raise no_rows(file_path, "it is empty")
    if _is_lines(text, whole, name):
        return _line_rows(stream, name, notes)
    window = _Window(stream, file_path, name, notes)
    if text.lstrip()[0] == "[":
        return _listed(window, name, "the top level")
    if _is_values(text, whole, name):
        return _values(window, name)
    return _rows_of_object(window, name)


def holds_rows(head: bytes, whole: bool, name: str) -> bool:
    """Whether a text in UTF-8 that begins with `head` is likely to hold rows, and is not, for example, a configuration.

    Args:
        head: its first bytes.
        whole: whether these are all of it.
        name: of the file.
    """
    text = head.decode("utf-8", "surrogateescape").lstrip()
    if not text.startswith(("[", "{")):
        return False
    if text.startswith("["):
        return text[1:].lstrip().startswith(("{", "["))
    if _for_lines(name) or _is_lines(text, whole, name) or _is_values(text, whole, name):
        return True
    if not whole:
        return re.search(r'"\s*:\s*\[\s*\{', text) is not None
    value = _complete(text)
    return isinstance(value, dict) and len(_lists_of_objects(value)) == 1


def _for_lines(name: str) -> bool:
    """Whether a file, perhaps a compressed one, has the name of one with a JSON value per line."""
    name = name.lower()
    plain = next((name.removesuffix(ending) for ending in COMPRESSIONS if name.endswith(ending)), name)
    return plain.endswith(LINE_ENDINGS)


class NoRowsError(UserError):
    """A file is whole, but has no rows."""


def no_rows(file_path: Path, why: str) -> NoRowsError:
    """The error for a file without rows."""
    return NoRowsError(f"{file_path} has no rows: {why}. Get the file again, or leave it out")


_NOTHING = object()


def _complete(text: str) -> Any:
    """The JSON value that `text` is; `_NOTHING` if it is none."""
    try:
        return parsed(text)[0]
    except (json.JSONDecodeError, RecursionError):
        return _NOTHING


def _is_lines(text: str, whole: bool, name: str) -> bool:
    """Whether a text that begins with `text` has one value per line."""
    lines = text.split("\n")
    # The last one may go on after the beginning that was read.
    lines = [line for line in (lines if whole else lines[:-1])[:_SHOWN_LINES] if line.strip()]
    for_lines = _for_lines(name)
    if not lines:
        return for_lines and not text.lstrip().startswith("[")
    first = _complete(lines[0])
    if isinstance(first, list):
        return len(lines) > 1
    if first is not _NOTHING:
        return len(lines) > 1 or for_lines
    if _first_value(text) is not None:
        return False
    # The first line is damaged, or the value that begins there goes on behind what was read.
    objects = sum(isinstance(_complete(line), dict) for line in lines[1:])
    return objects > 1 or (for_lines and (objects > 0 or len(lines) == 1) and not lines[0].lstrip().startswith("["))


def _is_values(text: str, whole: bool, name: str) -> bool:
    """Whether a text, which is neither a list nor lines, is a sequence of rows: objects on several lines."""
    found = _first_value(text)
    if found is None:
        return False
    first, rest = found
    if rest.strip() or not whole or not isinstance(first, dict):
        return True
    is_row = any(isinstance(first.get(member), list) for member in TURNS)
    return is_row or (_for_lines(name) and len(_lists_of_objects(first)) != 1)


def _first_value(text: str) -> tuple[Any, str] | None:
    """The JSON value at the beginning of `text`, and the text behind it; None if it is none."""
    text = text.lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value, text[end:]


def _lists_of_objects(value: dict[str, Any]) -> list[str]:
    return [key for key, member in value.items() if isinstance(member, list) and member and isinstance(member[0], dict)]


def _line_rows(stream: IO[bytes], name: str, notes: list[Note]) -> Iterator[RawRow]:
    """The rows of a text with one value per line."""
    number = -1
    parser = JsonParser()
    while data := stream.readline(MAX_ROW):
        number += 1
        if len(data) == MAX_ROW and not data.endswith(b"\n"):
            while data and not data.endswith(b"\n"):
                data = stream.readline(MAX_ROW)
            yield RawRow(str(number), Broken("too_large", f"the line has more than {MAX_ROW >> 20} MiB"), name)
            continue
        line = data.decode("utf-8", "surrogateescape")
        if line.isspace():
            continue
        try:
            value = parser.decode(line)
        except (json.JSONDecodeError, RecursionError) as error:
            yield RawRow(str(number), Broken("invalid_json", str(error)), name)
            continue
        yield RawRow(str(number), value, name)
        if parser.has_repeated:
            notes += parser.notes(f"{name} line {number + 1}")


class _Window:
    """A part of a JSON text, read on as it is needed, and the position in it."""

    def __init__(self, stream: IO[bytes], file_path: Path, name: str, notes: list[Note]) -> None:
        self.file_path = file_path
        self._stream, self._name, self._notes = stream, name, notes
        self._parser = JsonParser()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._lines, self._ended = "", 0, 0, False

    def next(self) -> str:
        """The next character that is no white space, which stays; "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr] # matches everywhere
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def expect(self, characters: str) -> str:
        """Pass the next character, which must be one of `characters`.

        Raises:
            UserError: it is another.
        """
        found = self.next()
        if not found or found not in characters:
            raise self._broken(f"there should be {' or '.join(map(repr, characters))}, not {found!r}", self._at)
        self._at += 1
        return found

    def value(self) -> Any:
        """Pass the next value and return it.

        Raises:
            UserError: it is not JSON, or too large.
        """
        self.next()
        while True:
            try:
                value, end = self._parser.decode_at(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or len(self._text) - error.pos < _MARGIN
                if self._ended or not cut:
                    raise self._broken(error.msg, error.pos) from None
            except RecursionError:
                raise self._broken("the value is nested too deeply", self._at) from None
            else:
                # A number at the end of the window may go on behind it.
                if end < len(self._text) or self._ended:
                    self._at = end
                    self._notes += self._parser.notes(self._name)
                    return value
            if len(self._text) - self._at > MAX_ROW:
                raise self._broken(f"a value has more than {MAX_ROW} characters", self._at)
            self._more()

    def _more(self) -> None:
        """Leave out what was passed, and read as much again as is left, so that a long value is not parsed often."""
        self._lines += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        data = self._stream.read(max(_WINDOW, len(rest)))
        self._ended = not data
        self._text, self._at = rest + self._utf8.decode(data, not data), 0

    def _broken(self, problem: str, at: int) -> UserError:
        line = self._lines + self._text.count("\n", 0, at) + 1
        return UserError(
            f"{self.file_path} is not valid JSON: {problem} (line {line}). The file is damaged: get it again"
        )


def _elements(window: _Window) -> Iterator[Any]:
    """The elements of the list at which `window` is, while they are read."""
    window.expect("[")
    if window.next() == "]":
        window.expect("]")
        return
    while True:
        yield window.value()
        if window.expect(",]") == "]":
            return


def _end(window: _Window) -> None:
    if window.next():
        raise UserError(
            f"{window.file_path} has more after its first value: write one value per line, or one list of all rows"
        )


def _listed(window: _Window, name: str, where: str) -> Iterator[RawRow]:
    number = -1
    for number, value in enumerate(_elements(window)):
        yield RawRow(str(number), value, name)
    if number < 0:
        raise no_rows(window.file_path, f"{where} is empty")
    _end(window)


def _values(window: _Window, name: str) -> Iterator[RawRow]:
    number = 0
    while window.next():
        yield RawRow(str(number), window.value(), name)
        number += 1


def _rows_of_object(window: _Window, name: str) -> Iterator[RawRow]:
    """The elements of the only list of objects among the members of an object."""
    if window.next() != "{":
        value = window.value()
        _end(window)
        raise UserError(f"{window.file_path} should be a list of rows, it is of type {type(value).__name__}")
    window.expect("{")
    members: list[str] = []
    found = ""
    while window.next() != "}":
        key = window.value()
        window.expect(":")
        members.append(str(key))
        if window.next() != "[":
            window.value()
        else:
            for number, value in enumerate(_elements(window)):
                if number == 0 and isinstance(value, dict) and found:
                    raise UserError(
                        f"{window.file_path} has more than one list of objects ({found!r}, {key!r}): write a file with "
                        "the list of rows alone"
                    )
                if number == 0 and isinstance(value, dict):
                    found = str(key)
                if found == str(key):
                    yield RawRow(str(number), value, name)
        if window.expect(",}") == "}":
            break
    else:
        window.expect("}")
    _end(window)
    if not found:
        shown = ", ".join(members[:10]) or "none"
        raise UserError(
            f"{window.file_path} should be a list of rows, or an object with one list of them; it is an object with "
            f"the members {shown}"
        )
