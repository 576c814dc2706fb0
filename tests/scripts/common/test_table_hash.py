"""A table's hash depends on its values, not on how it is stored."""

import copy
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.common.table_hash import TableHash, table_sha256

SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("small", pa.int32()),
        ("real", pa.float64()),
        ("flag", pa.bool_()),
        ("text", pa.string()),
        ("data", pa.binary()),
        ("texts", pa.list_(pa.string())),
        ("numbers", pa.list_(pa.list_(pa.int32()))),
        ("pairs", pa.list_(pa.struct([("source", pa.string()), ("key", pa.string()), ("ids", pa.list_(pa.int64()))]))),
    ]
)
ROW = {
    "number": 2**60,
    "small": 0,
    "real": float("nan"),
    "flag": False,
    "text": "é:2",
    "data": b"\0\1",
    "texts": ["a", "", "bc"],
    "numbers": [[1], [], [2, 3]],
    "pairs": [{"source": "s", "key": "k", "ids": [1]}, {"source": "", "key": "", "ids": []}],
}


def table(*rows, schema=SCHEMA):
    return pa.Table.from_pylist(list(rows), schema)


def test_chunks_slices_encodings_and_files_do_not_matter(tmp_path):
    other = {**ROW, "number": 1, "text": "", "texts": [], "numbers": [], "pairs": None, "real": None}
    whole = table(ROW, other, ROW)
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 0), whole.slice(1, 2)])
    pq.write_table(chunked, tmp_path / "t.parquet", compression="gzip", row_group_size=1)
    stored = pq.read_table(tmp_path / "t.parquet")
    dictionary = stored.set_column(4, "text", stored["text"].dictionary_encode())
    large = whole.set_column(4, "text", whole["text"].cast(pa.large_string()))
    sliced = table(other, ROW, *whole.to_pylist(), other).slice(2, 3)
    assert len({table_sha256(same) for same in (whole, chunked, stored, dictionary, large, sliced)}) == 1


CHANGES = {
    "number": [1, None],
    "small": [1, None],
    "real": [0.0, None],
    "flag": [True, None],
    "text": ["é:", "é:3", "", None],
    "data": [b"\0", None],
    "texts": [["a", "bc"], ["a", "b", "c"], ["", "a", "bc"], ["a", None, "bc"], [], None],
    "numbers": [[[1], [2, 3]], [[1, 2], [], [3]], [[], [1], [2, 3]], [None, [1], [2, 3]], [], None],
    "pairs": [
        [{"source": "sk", "key": "", "ids": [1]}, {"source": "", "key": "", "ids": []}],
        [{"source": "s", "key": "k", "ids": []}, {"source": "", "key": "", "ids": [1]}],
        [{"source": "s", "key": "k", "ids": [1]}, None],
        [],
        None,
    ],
}


@pytest.mark.parametrize("column", SCHEMA.names)
@pytest.mark.parametrize("row", range(3))
def test_every_change_of_a_cell_gives_another_hash(column: str, row: int):
    hashes = {table_sha256(table(ROW, ROW, ROW))}
    for changed in CHANGES[column]:
        rows = [copy.deepcopy(ROW) for _ in range(3)]
        rows[row][column] = changed
        hashes.add(table_sha256(table(*rows)))
    assert len(hashes) == len(CHANGES[column]) + 1


def test_rows_columns_and_types_count():
    hashes = [
        table_sha256(same)
        for same in (
            table(),
            table(ROW),
            table(ROW, ROW),
            table(ROW).rename_columns([*SCHEMA.names[:-1], "others"]),
            table(ROW).select(SCHEMA.names[:-1]),
            table(ROW).set_column(1, "small", pa.array([0], pa.int64())),
        )
    ]
    assert len(set(hashes)) == len(hashes)


def test_a_type_without_a_fixed_form_is_refused():
    with pytest.raises(ValueError, match="decimal128"):
        table_sha256(pa.table({"a": [Decimal("1.5")]}))


def test_a_hash_is_the_same_in_every_version():
    """Plans, token tables and everything made from them refer to tables by these hashes."""
    rows = pa.table({"a": pa.array([1, 2], pa.int64()), "b": [["x", "é"], []], "c": [True, False]})
    assert table_sha256(rows) == "6c6afd043b62a0f0ba9be2e4e47dc89466f6c997932ddaf3d9015cdd2c3adc8f"


EMPTY = {"number": None, "text": None, "texts": [None], "numbers": [], "pairs": [None], "flag": None}


@pytest.mark.parametrize("rows", [(), (ROW,), (ROW, EMPTY, ROW), (EMPTY, ROW, {**ROW, "text": "ü" * 2_000_000})])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_hash_of_parts_is_that_of_the_whole(tmp_path, rows, size):
    whole = table(*rows)
    with TableHash(SCHEMA, tmp_path / "table.parquet") as parts:
        for start in range(0, len(rows), size):
            part = whole.slice(start, size)
            parts.update(part if start else part.to_batches()[0])
        assert parts.hexdigest() == parts.hexdigest() == table_sha256(whole)
