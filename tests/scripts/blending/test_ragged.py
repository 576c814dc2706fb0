"""Lists as flat arrays, against plain Python lists."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.blending.ragged import Ragged, concat_ranges, segment_cumsum, starts_from_lengths

_LISTS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6)


def _python(ragged: Ragged) -> list[list[int]]:
    return [ragged.values[start:end].tolist() for start, end in zip(ragged.starts[:-1], ragged.starts[1:], strict=True)]


@settings(deadline=None)
@given(_LISTS)
def test_there_and_back(lists):
    assert _python(Ragged.from_lists(lists)) == lists
    assert Ragged.from_lists(lists).to_arrow(pa.int32()).to_pylist() == lists
    assert _python(Ragged.from_arrow(pa.array(lists, pa.list_(pa.int64())))) == lists


@settings(deadline=None)
@given(_LISTS, st.data())
def test_taking_rows(lists, data):
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6)) if lists else []
    assert _python(Ragged.from_lists(lists).take(np.array(rows, np.int64))) == [lists[row] for row in rows]


@settings(deadline=None)
@given(_LISTS)
def test_running_sums_begin_anew(lists):
    ragged = Ragged.from_lists(lists)
    sums = segment_cumsum(ragged.values, ragged.starts)
    assert sums.tolist() == [sum(row[: place + 1]) for row in lists for place in range(len(row))]


def test_a_slice_of_a_column_is_its_own_list():
    column = pa.array([[1], [2, 3], [], [4]], pa.list_(pa.int64()))
    assert _python(Ragged.from_arrow(column.slice(1, 3))) == [[2, 3], [], [4]]


def test_ranges_and_starts():
    assert concat_ranges(np.array([5, 9, 2]), np.array([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]
    assert starts_from_lengths(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]
