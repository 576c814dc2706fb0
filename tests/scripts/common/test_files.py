"""Files are whole or absent, and equal content has equal bytes."""

import pyarrow as pa
import pytest

from scripts.common import files
from scripts.common.errors import UserError
from scripts.common.files import (
    atomic,
    canonical_json,
    file_sha256,
    read_json,
    read_table,
    write_json,
    write_table,
    writing_table,
)
from tests.disks import PowerCut


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic(path, "w") as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    disk = PowerCut(monkeypatch)
    write_json(tmp_path / "a.json", [1])
    write_table(tmp_path / "a.parquet", pa.table({"a": [1]}))
    assert disk.renames == [("a.json", True), ("a.parquet", True)]


def test_broken_and_absent_json_are_the_users_fault_and_named(tmp_path):
    (tmp_path / "b.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(UserError, match=r"b\.json is not valid JSON.*line 2"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json")


def test_json_does_not_depend_on_the_order_of_keys(tmp_path):
    write_json(tmp_path / "1.json", {"b": 1, "a": [2]})
    write_json(tmp_path / "2.json", {"a": [2], "b": 1})
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'


def test_equal_tables_give_equal_files(tmp_path):
    table = pa.table({"a": list(range(10000)), "b": [["x"]] * 10000})
    write_table(tmp_path / "1.parquet", table)
    write_table(tmp_path / "2.parquet", table)
    assert file_sha256(tmp_path / "1.parquet") == file_sha256(tmp_path / "2.parquet")


def test_a_table_that_is_written_in_parts_has_the_bytes_of_the_whole(tmp_path, monkeypatch):
    table = pa.table({"a": list(range(150_000)), "b": [["x", str(number)] for number in range(150_000)]})
    write_table(tmp_path / "whole.parquet", table)
    with writing_table(tmp_path / "parts.parquet", table.schema) as writer:
        for batch in table.to_batches(max_chunksize=4096):
            writer.write(batch)
        assert not (tmp_path / "parts.parquet").exists()
    assert file_sha256(tmp_path / "parts.parquet") == file_sha256(tmp_path / "whole.parquet")
    # Batches that do not fill a row group, and rows that are long.
    monkeypatch.setattr(files, "_GROUP_BYTES", 100_000)
    for size in (5000, 70_000):
        with writing_table(tmp_path / "other.parquet", table.schema) as writer:
            for batch in table.to_batches(max_chunksize=size):
                writer.write(batch)
        assert read_table(tmp_path / "other.parquet").equals(table)
    with writing_table(tmp_path / "empty.parquet", table.schema):
        pass
    assert read_table(tmp_path / "empty.parquet").equals(table.slice(0, 0))


def test_a_table_that_is_not_written_to_its_end_is_not_there(tmp_path):
    table = pa.table({"a": [1]})

    def interrupted() -> None:
        with writing_table(tmp_path / "a.parquet", table.schema) as writer:
            writer.write(table.to_batches()[0])
            raise UserError("too many rows are lost")

    with pytest.raises(UserError, match="too many"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_read_whole_or_by_columns_in_the_order_asked_for(tmp_path):
    table = pa.table({"a": pa.array([1, 2], pa.int64()), "b": [["x"], []], "c": ["u", "v"]})
    write_table(tmp_path / "t.parquet", table)
    assert read_table(tmp_path / "t.parquet").equals(table)
    assert read_table(tmp_path / "t.parquet", ["c", "b"]).equals(table.select(["c", "b"]))
    narrow = read_table(tmp_path / "t.parquet", schema=pa.schema([("c", pa.string()), ("a", pa.int32())]))
    assert narrow.schema == pa.schema([("c", pa.string()), ("a", pa.int32())])
    assert narrow.to_pylist() == [{"c": "u", "a": 1}, {"c": "v", "a": 2}]


def test_a_table_that_is_absent_damaged_or_another_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(FileNotFoundError, match=r"t\.parquet"):
        read_table(path)
    write_table(path, pa.table({"a": [1]}))
    with pytest.raises(UserError, match=r"t\.parquet has no column 'b'.*scripts\.verify"):
        read_table(path, ["a", "b"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"t\.parquet is damaged or not a Parquet file"):
        read_table(path)
