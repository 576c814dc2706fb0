"""Values of rows of own data: which are absent, what a text must be, lists that are written in other ways, examples.

Files of one dataset often unite several schemas, in which the members of the others are null, empty or, from pandas,
NaN: those are no values.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from scripts.adapters.base import RowError
from scripts.common.records import SLOT_PREFIX

MAX_EXAMPLE = 200
"""Characters of the longest example in a report."""
_LONG_WORD = re.compile(r"\S{60,}")
_SPACE = re.compile(r"\s+")


def has_value(value: Any) -> bool:
    """Whether a member has a value: not null, "", [], {} or NaN, nor a list or an object of nothing but these."""
    if not value:
        return value is False or type(value) in (int, float)
    if type(value) is not list and type(value) is not dict:
        return type(value) is not float or value == value
    # Not by recursion: a value may be nested as deeply as JSON is parsed.
    left: list[list[Any] | dict[Any, Any]] = [value]
    while left:
        inner = left.pop()
        for each in inner.values() if isinstance(inner, dict) else inner:
            if each and type(each) in (list, dict):
                left.append(each)
            elif has_value(each):
                return True
    return False


def checked_text(value: str) -> str:
    """A text of a turn, unchanged.

    Raises:
        RowError: reserved_text (it contains a slot of records), invalid_utf8.
    """
    if "<" in value and SLOT_PREFIX in value:
        raise RowError("reserved_text", f"the text contains {SLOT_PREFIX!r}, which refers to images in records")
    if not is_utf8(value):
        raise RowError("invalid_utf8", "the text contains bytes that are not UTF-8")
    return value


def is_utf8(value: str) -> bool:
    """Whether a text can be encoded: it has no lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: Any, name: str) -> str:
    """The text of a column: a text, or a number as JSON writes it.

    Raises:
        RowError: bad_row (anything else).
    """
    if isinstance(value, str):
        return value
    if type(value) is int or (type(value) is float and abs(value) < float("inf")):
        return str(value)
    raise RowError("bad_row", f"{name!r:.40} should be a text, it is of type {type(value).__name__}")


def as_list(value: Any) -> Any:
    """`value` as a list, where it is one in another form; anything else unchanged.

    Other forms are JSON or a Python literal in a text, as tables without lists hold it, and an object of lists of equal
    length, which is how `datasets` stores a sequence of objects.
    """
    if isinstance(value, str):
        return _parsed(value) if value[:1] == "[" and value.rstrip()[-1:] == "]" else value
    if isinstance(value, dict) and value:
        lists = list(value.values())
        if all(isinstance(each, list) and each for each in lists) and len({len(each) for each in lists}) == 1:
            return [dict(zip(value, members, strict=True)) for members in zip(*lists, strict=True)]
    return value


def _parsed(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
                value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else text
    return text


def one_line(text: str, limit: int = MAX_EXAMPLE) -> str:
    """`text` as one line of at most `limit` characters, in which long words, such as base64, are cut."""
    text = _SPACE.sub(" ", _LONG_WORD.sub(lambda match: f"{match[0][:40]}...", text[: 20 * limit])).strip()
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def shown(value: Any) -> str:
    """A value in a message, at most 40 characters of it."""
    return f"{value!r:.40}" if isinstance(value, str | int | float) else f"of type {type(value).__name__}"


def member_of(row: Mapping[str, Any], name: str) -> Any:
    """The value of a member, or of a member inside of objects by a name with dots (`meta.caption`); None if absent."""
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def has_member(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a member of that name, as `member_of` finds it, with or without a value."""
    folder, _, last = name.rpartition(".")
    inner = member_of(row, folder) if folder else None
    return name in row or (isinstance(inner, dict) and last in inner)


def members_of(row: Mapping[str, Any]) -> str:
    """The names of a row's members with values, for an error message."""
    names = [f"{name!s:.30}" for name, value in row.items() if has_value(value)]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "(none)"
