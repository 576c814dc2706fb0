"""Rows of raw files: what a file with one row per line gives while it is read."""

import json

import pytest

from scripts.adapters.raw import Broken, line_rows
from scripts.common.errors import UserError
from scripts.common.files import bytes_sha256

LINES = [
    b'\xef\xbb\xbf{"a": 1}',
    b"",
    b'{"a": ',
    b'{"a": "\xff"}\r',
    b'{"a": 1, "a": 2}',
    '{"a": "\u2028 é"}'.encode(),
    b"5",
]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
def test_every_line_is_a_row_with_its_number(tmp_path, ending):
    path, notes = tmp_path / "rows.jsonl", []
    data = b"\n".join(LINES) + ending
    path.write_bytes(data)
    rows = list(line_rows(path, bytes_sha256(data), notes))
    assert [row.id for row in rows] == ["0", "2", "3", "4", "5", "6"]
    with pytest.raises(json.JSONDecodeError) as broken:
        json.loads('{"a": ')
    values = [{"a": 1}, Broken("invalid_json", str(broken.value)), {"a": "\udcff"}, {"a": 2}, {"a": "\u2028 é"}, 5]
    assert [row.value for row in rows] == values
    assert [note.example for note in notes] == ["rows.jsonl line 5: 'a' occurs twice in one object"]


def test_rows_are_parsed_while_the_file_is_read_and_its_hash_is_checked_at_the_end(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"1\n" * 100_000)
    parsed = []
    whole = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: parsed.append(text) or whole(text, **options))
    rows = line_rows(path, "0" * 64, [])
    assert next(rows).value == 1 and len(parsed) == 1
    with pytest.raises(UserError, match=r"rows\.jsonl has changed since it was fetched"):
        list(rows)
    assert len(parsed) == 100_000


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_no_rows_and_no_file_are_named(tmp_path, data):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"rows\.jsonl has no rows"):
        list(line_rows(path, bytes_sha256(data), []))
    path.unlink()
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be read: No such file"):
        list(line_rows(path, bytes_sha256(data), []))
