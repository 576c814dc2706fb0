"""A table's hash depends on its values, not on how it is stored."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.blending.plan_table import PLAN_SCHEMA
from scripts.blending.table_hash import logical_sha256

ROW = {
    "position": 0, "epoch": 0, "uids": ["a:1", "é:2"], "copies": [0, 1], "choices": [[2**60], []],
    "rounds": [[1], [0]], "offsets": [0, 1], "named": [False, True], "images": [{"source": "s", "key": "k"}],
    "n_images": 1, "n_tokens": 5, "n_labels": 2, "pack": 0, "dataset": "a", "form": "single",
}  # fmt: skip


def table(*rows):
    return pa.Table.from_pylist(list(rows), PLAN_SCHEMA)


def test_chunks_slices_and_files_do_not_matter(tmp_path):
    whole = table(ROW, {**ROW, "position": 1})
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 1)])
    pq.write_table(chunked, tmp_path / "t.parquet", compression="gzip", row_group_size=1)
    stored = pq.read_table(tmp_path / "t.parquet")
    sliced = table(ROW, ROW, *whole.to_pylist()).slice(2)
    assert len({logical_sha256(same) for same in (whole, chunked, stored, sliced)}) == 1


CHANGES = {
    "position": 1, "uids": ["a:1é", ":2"], "choices": [[], [2**60]], "rounds": [[], [1, 0]], "named": [True, True],
    "images": [{"source": "sk", "key": ""}], "form": "join",
}  # fmt: skip


@pytest.mark.parametrize("column", CHANGES)
def test_every_change_changes_it(column):
    assert logical_sha256(table({**ROW, column: CHANGES[column]})) != logical_sha256(table(ROW))


def test_empty_fields_are_refused():
    with pytest.raises(ValueError, match="no empty fields"):
        logical_sha256(table({**ROW, "dataset": None}))
