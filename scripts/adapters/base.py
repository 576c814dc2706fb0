"""What all adapters share: their results, and helpers that check the values of a row.

An adapter is a module with one function, `records(raw, images)`. It yields

    Record     a conversation
    Dropped    raw rows that cannot be used, with a reason
    Note       something that was repaired or is worth counting; no row is lost

so that every raw row is accounted for. Inside an adapter a bad row raises `RowError`; `convert_rows` turns it into a
`Dropped`.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from scripts.adapters.raw import Broken, Note, RawRow
from scripts.common.records import SLOT_PREFIX, Record


class Dropped(NamedTuple):
    """Raw rows that are not used; `example` names the first of them and what exactly was wrong."""

    reason: str
    example: str
    rows: int = 1


class RowError(Exception):
    """The current row cannot be used.

    Args:
        reason: the name under which the report counts it: missing_image, bad_row, empty_text, ...
        detail: what exactly is wrong, for the example in the report.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def convert_rows(
    rows: Iterable[RawRow], convert: Callable[[RawRow], Iterable[Record | Note]], label: str
) -> Iterator[Record | Dropped | Note]:
    """Convert `rows` one by one; a row that raises `RowError` is dropped. `label` names the file in examples."""
    for row in rows:
        try:
            if isinstance(row.value, Broken):
                raise RowError(*row.value)
            yield from list(convert(row))
        except RowError as error:
            yield Dropped(error.reason, f"{label} row {row.id}: {error.detail}")


_PLACEHOLDER = re.compile(r"\n?[ \t]*<image>[ \t]*\n?")


def text(value: Any, name: str, slots: bool = False) -> str:
    """`value` as clean text: without image placeholders, stripped.

    Args:
        value: of a field of the row.
        name: of the field, for the error message.
        slots: allow image slots (`<|image:I|>`), for text into which the adapter has put them.

    Raises:
        RowError: bad_row (not text), invalid_utf8, reserved_text, empty_text.
    """
    if not isinstance(value, str):
        raise RowError("bad_row", f"{name} is not text but {type(value).__name__}")
    if SLOT_PREFIX in value and not slots:
        raise RowError("reserved_text", f"{name} contains {SLOT_PREFIX!r}, which refers to images in records")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError("invalid_utf8", f"{name} contains bytes that are not UTF-8") from None
    while "<image>" in value:
        value = _PLACEHOLDER.sub(lambda match: "\n" if "\n" in match[0] else " ", value)
    value = value.strip()
    if not value:
        raise RowError("empty_text", f"{name} is empty")
    return value


def field(row: Any, name: str, *kinds: type) -> Any:
    """The member `name` of a row, which must be of one of the types `kinds`.

    Raises:
        RowError: bad_row.
    """
    if not isinstance(row, dict):
        raise RowError("bad_row", f"not an object but {type(row).__name__}")
    if name not in row:
        raise RowError("bad_row", f"no field {name!r}")
    # In Python a bool is an int.
    if not isinstance(row[name], kinds) or isinstance(row[name], bool):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise RowError("bad_row", f"{name!r} is not of type {expected} but {type(row[name]).__name__}")
    return row[name]


_STEM = re.compile(r"[A-Za-z0-9_-]{1,100}")


def safe_path(name: str) -> str:
    """`name`, a path in a row, if it is relative and does not lead out of its folder.

    Raises:
        RowError: unsafe_path.
    """
    parts = re.split(r"[/\\]", name)
    if ".." in parts or parts[0] == "" or "\0" in name or re.match(r"[A-Za-z]:", name):
        raise RowError("unsafe_path", f"{name!r:.80} is not a path below the folder of images")
    return name


def file_stem(name: str | int) -> str:
    """`name`, the id of an image in a row, as a file name without extension.

    Raises:
        RowError: unsafe_path, or bad_row (anything else that is not a valid file name).
    """
    if not _STEM.fullmatch(str(name)):
        if "/" in str(name) or "\\" in str(name):
            safe_path(str(name))
        raise RowError("bad_row", f"{str(name)!r:.80} is not the id of an image")
    return str(name)


def coco_path(number: int | str, folder: str = "train2017") -> str:
    """The path, below the data path, of the image with a COCO id, in one of the folders of COCO 2017.

    Raises:
        RowError: bad_row (not a COCO id).
    """
    if isinstance(number, bool) or not str(number).isdecimal() or not str(number).isascii():
        raise RowError("bad_row", f"{number!r} is not a COCO image id")
    return f"coco/{folder}/{int(number):012d}.jpg"
