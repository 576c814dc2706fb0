"""A part of a sorted table is read without the rest."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.common.errors import UserError
from scripts.common.row_groups import read_between, read_matching

SCHEMA = pa.schema([("number", pa.int64()), ("name", pa.string())])


@pytest.fixture
def stored(tmp_path):
    numbers = [0, 0, 3, 3, 3, 7, 8, 20, 20, 21]
    # A nested column before the others: columns of a file are counted by their leaves.
    columns = {
        "pairs": [{"a": 1, "b": "x"}] * 10,
        "number": pa.array(numbers, pa.int64()),
        "name": [f"n{number:02d}" for number in numbers],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=3)
    return tmp_path / "t.parquet", numbers


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 100), (3, 4), (4, 7), (8, 21), (20, 20), (22, 99)])
def test_a_range_of_rows(stored, first, end):
    path, numbers = stored
    table = read_between(path, "number", first, end, SCHEMA)
    assert table.schema == SCHEMA
    assert table["number"].to_pylist() == [number for number in numbers if first <= number < end]


def test_rows_with_given_values(stored):
    path, numbers = stored
    for _ in range(50):
        wanted = random.choices(range(25), k=3)
        table = read_matching(path, "name", [f"n{number:02d}" for number in wanted], SCHEMA)
        assert table["number"].to_pylist() == [number for number in numbers if number in wanted]
    assert read_matching(path, "name", [], SCHEMA).num_rows == 0


def test_only_the_row_groups_of_the_part_are_read(stored, monkeypatch):
    read = []
    whole = pq.ParquetFile.read_row_group

    def counted(self, group, columns):
        read.append(group)
        return whole(self, group, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    read_between(stored[0], "number", 7, 9, SCHEMA)
    read_matching(stored[0], "name", ["n00", "n21"], SCHEMA)
    assert read == [1, 2, 0, 3]


def test_a_value_without_statistics_is_found(tmp_path):
    names = ["a" * 5000, "b"]
    pq.write_table(pa.table({"number": [1, 2], "name": names}), tmp_path / "t.parquet", row_group_size=1)
    assert read_matching(tmp_path / "t.parquet", "name", names[:1], SCHEMA)["number"].to_pylist() == [1]


def test_damaged_and_absent_files_are_named(stored):
    path = stored[0]
    with pytest.raises(UserError, match=r"t\.parquet has no column 'other'"):
        read_between(path, "number", 0, 1, SCHEMA.append(pa.field("other", pa.string())))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"t\.parquet is damaged"):
        read_between(path, "number", 0, 1, SCHEMA)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_matching(path, "name", ["x"], SCHEMA)
