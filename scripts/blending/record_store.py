"""Records by their uid, a few at a time: texts are large, so only those in use become Python objects."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from scripts.common.errors import UserError
from scripts.common.files import open_table
from scripts.common.records import RECORD_SCHEMA


class _Row(NamedTuple):
    """Where a record lies: number of the record batch, and the row in it."""

    batch: int
    row: int


class RecordStore:
    """The records with the given uids, out of `records/<dataset>.parquet` (the dataset is the first part of a uid).

    Raises:
        UserError: a table is absent, or lacks a requested record.
    """

    def __init__(self, folder: str | Path, uids: Iterable[str]) -> None:
        requested = pa.array(sorted(set(uids)), pa.string())
        self._batches: list[pa.RecordBatch] = []
        self._rows: dict[str, _Row] = {}
        for dataset in sorted({uid.partition(":")[0] for uid in requested.to_pylist()}):
            path = Path(folder) / f"{dataset}.parquet"
            if not path.exists():
                raise UserError(f"{path} does not exist: run convert for {dataset} first")
            with open_table(path) as table:
                for batch in table.iter_batches(columns=RECORD_SCHEMA.names):
                    self._add(batch.filter(pc.is_in(batch["uid"], value_set=requested)))
        for uid in requested.to_pylist():
            if uid not in self._rows:
                raise UserError(f"the plan names the record {uid}, which {folder} does not hold: run plan again")

    def fetch(self, uids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records with these uids, by uid."""
        rows: dict[int, list[int]] = {}
        for uid in set(uids):
            found = self._rows[uid]
            rows.setdefault(found.batch, []).append(found.row)
        batches = (self._batches[batch].take(pa.array(numbers)) for batch, numbers in rows.items())
        return {record["uid"]: record for batch in batches for record in batch.to_pylist()}

    def _add(self, batch: pa.RecordBatch) -> None:
        number = len(self._batches)
        self._batches.append(batch)
        self._rows.update((uid, _Row(number, row)) for row, uid in enumerate(batch["uid"].to_pylist()))
