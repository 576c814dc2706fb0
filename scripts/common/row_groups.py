"""Reading a part of a sorted Parquet file: only the row groups that can hold the rows that are wanted.

A Parquet file keeps the smallest and the largest value of every column of a row group. In a column that is sorted these
ranges hardly overlap, so a part of a long table is found without reading the rest.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.common.errors import damaged
from scripts.common.files import open_table


def read_between(path: Path, column: str, first: int, end: int, schema: pa.Schema) -> pa.Table:
    """The rows whose `column` is in [first, end), in their order, with the columns of `schema`.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged, or lacks a column.
    """

    def between(table: pa.Table) -> pa.Table:
        values = table[column]
        return table.filter(pc.and_(pc.greater_equal(values, first), pc.less(values, end)))

    return _read(path, column, lambda low, high: low < end and high >= first, between, schema)


def read_matching(path: Path, column: str, values: Iterable[str], schema: pa.Schema) -> pa.Table:
    """The rows whose `column` is one of `values`, in their order, with the columns of `schema`.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged, or lacks a column.
    """
    wanted = sorted(set(values))
    value_set = pa.array(wanted, pa.string())

    def may_hold(low: str, high: str) -> bool:
        position = bisect_left(wanted, low)
        return position < len(wanted) and wanted[position] <= high

    return _read(path, column, may_hold, lambda table: table.filter(pc.is_in(table[column], value_set)), schema)


def _read(
    path: Path,
    column: str,
    may_hold: Callable[[Any, Any], bool],
    select: Callable[[pa.Table], pa.Table],
    schema: pa.Schema,
) -> pa.Table:
    """The selected rows of the row groups whose smallest and largest value of `column` pass `may_hold`."""
    with open_table(path) as stored:
        absent = sorted(set(schema.names) - set(stored.schema_arrow.names))
        if absent:
            raise damaged(path, f"has no column {absent[0]!r}: it is damaged, or of another version of this project")
        number = stored.schema_arrow.names.index(column)
        parts = [schema.empty_table()]
        for group in range(stored.num_row_groups):
            statistics = _leaf(stored.metadata.row_group(group), number, column).statistics
            # Statistics are left out where a value is very long.
            known = statistics is not None and statistics.has_min_max
            if not known or may_hold(statistics.min, statistics.max):
                part = stored.read_row_group(group, schema.names).select(schema.names).cast(schema)
                parts.append(select(part))
    return pa.concat_tables(parts)


def _leaf(group: pq.RowGroupMetaData, number: int, column: str) -> pq.ColumnChunkMetaData:
    """The metadata of a column in a row group; columns before it may be nested, so that its number is a larger one."""
    while group.column(number).path_in_schema != column:
        number += 1
    return group.column(number)
