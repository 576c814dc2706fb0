"""Records found by their uid, a few at a time: texts are large, so only those in use become Python objects."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.common.errors import UserError
from scripts.common.records import RECORD_SCHEMA


class RecordStore:
    """The records with the given uids, out of `records/<dataset>.parquet` (the dataset is the first part of a uid).

    Raises:
        UserError: a table is absent, or lacks a record that is asked for.
    """

    def __init__(self, folder: str | Path, uids: Iterable[str]):
        wanted = pa.array(sorted(set(uids)), pa.string())
        self._batches: list[pa.RecordBatch] = []
        self._places: dict[str, tuple[int, int]] = {}
        for dataset in sorted({uid.partition(":")[0] for uid in wanted.to_pylist()}):
            path = Path(folder) / f"{dataset}.parquet"
            if not path.exists():
                raise UserError(f"{path} does not exist: run convert for {dataset} first")
            for batch in pq.ParquetFile(path).iter_batches(columns=RECORD_SCHEMA.names):
                self._add(batch.filter(pc.is_in(batch["uid"], value_set=wanted)))
        for uid in wanted.to_pylist():
            if uid not in self._places:
                raise UserError(f"the plan names the record {uid}, which {folder} does not hold: run plan again")

    def fetch(self, uids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The records with these uids, by uid."""
        rows: dict[int, list[int]] = {}
        for uid in set(uids):
            batch, row = self._places[uid]
            rows.setdefault(batch, []).append(row)
        found = [record for batch in rows for record in self._batches[batch].take(pa.array(rows[batch])).to_pylist()]
        return {record["uid"]: record for record in found}

    def _add(self, batch: pa.RecordBatch) -> None:
        number = len(self._batches)
        self._batches.append(batch)
        self._places.update((uid, (number, row)) for row, uid in enumerate(batch["uid"].to_pylist()))
