"""The plan as a table: one row per conversation, in the order in which they are trained on.

Consecutive rows with one number in `pack` form a unit, which is trained on as one row of a batch; without packing every
conversation is a unit.

A row holds everything about a conversation except its texts: which records, which rounds of them in which order, which
of their alternatives, under which image numbers. `render.py` turns a row into messages, without any further draw.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scripts.blending.conversations import Conversations
from scripts.blending.corpus import Corpus
from scripts.blending.ragged import Ragged, nested
from scripts.blending.truncation import Truncated
from scripts.common.errors import UserError, damaged
from scripts.common.files import open_table, read_json, read_table
from scripts.common.table_hash import table_sha256

PLAN_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("epoch", pa.int32()),
        ("uids", pa.list_(pa.string())),
        ("copies", pa.list_(pa.int32())),
        ("choices", pa.list_(pa.list_(pa.int64()))),
        ("rounds", pa.list_(pa.list_(pa.int32()))),
        ("offsets", pa.list_(pa.int32())),
        ("named", pa.list_(pa.bool_())),
        ("images", pa.list_(pa.struct([("source", pa.string()), ("key", pa.string())]))),
        ("n_images", pa.int32()),
        ("n_tokens", pa.int32()),
        ("n_labels", pa.int32()),
        ("pack", pa.int64()),
        ("dataset", pa.string()),
        ("form", pa.string()),
    ]
)
SINGLE, CONCAT, JOINED = "single", "concat", "join"


def build_table(
    corpus: Corpus,
    conversations: Conversations,
    truncated: Truncated,
    units: Ragged,
    owners: np.ndarray,
    entries: Sequence[str],
    joins: Sequence[bool],
    epoch: int,
) -> pa.Table:
    """The plan of the conversations that truncation has kept, as a table of `PLAN_SCHEMA`.

    Args:
        corpus: the records that the conversations show.
        conversations: as they were before truncation.
        truncated: what is left of them.
        units: every kept conversation once, unit by unit.
        owners: (n,) blend entry of each kept conversation, by number.
        entries: names of the entries.
        joins: whether each entry is a join.
        epoch: number of the epoch, from 0.
    """
    order = units.values
    rows = truncated.pieces.take(order)
    pieces, starts = rows.values, rows.starts
    images = truncated.images.take(order)
    form = np.where(np.array(joins)[owners], 2, truncated.pieces.lengths > 1)[order]
    position = np.arange(len(order))
    columns = {
        "position": position,
        "epoch": np.full(len(order), epoch),
        "uids": nested(starts, corpus.uids.take(pa.array(conversations.records[pieces]))),
        "copies": nested(starts, pa.array(conversations.copies[pieces], pa.int32())),
        "choices": nested(starts, conversations.choices.take(pieces).to_arrow(pa.int64())),
        "rounds": nested(starts, truncated.rounds.take(pieces).to_arrow(pa.int32())),
        "offsets": nested(starts, pa.array(conversations.offsets[pieces], pa.int32())),
        "named": nested(starts, pa.array(conversations.named[pieces], pa.bool_())),
        "images": nested(images.starts, corpus.catalogue.take(pa.array(images.values, pa.int64()))),
        "n_images": images.lengths,
        "n_tokens": truncated.n_tokens[order],
        "n_labels": truncated.n_labels[order],
        "pack": units.rows,
        "dataset": pa.array(entries, pa.string()).take(pa.array(owners[order])),
        "form": pa.array([SINGLE, CONCAT, JOINED]).take(pa.array(form)),
    }
    arrays = [
        values if isinstance(values, pa.Array) else pa.array(values, field.type)
        for field, values in ((field, columns[field.name]) for field in PLAN_SCHEMA)
    ]
    return pa.Table.from_arrays(arrays, schema=PLAN_SCHEMA)


def manifest_path(plan: str | Path) -> Path:
    """The path of a plan's manifest."""
    return Path(plan).with_suffix(".json")


def read_plan(path: str | Path) -> tuple[pa.Table, dict[str, Any]]:
    """A plan and its manifest.

    Raises:
        UserError: either is absent, or the table is not the one that the manifest describes.
    """
    path = _existing(path)
    manifest, table = read_json(manifest_path(path)), read_table(path)
    if table.schema != PLAN_SCHEMA or table_sha256(table) != manifest["sha256"]:
        raise damaged(path, f"is not the table that {manifest_path(path)} describes")
    return table, manifest


def unit_ids(path: str | Path) -> np.ndarray:
    """The unit of every row of a plan, (rows,) rising.

    Raises:
        UserError: the plan is absent.
    """
    return read_table(_existing(path), columns=["pack"])["pack"].to_numpy()


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise UserError(f"{path} does not exist: run plan first")
    return Path(path)


def read_rows(path: str | Path, first: int, end: int) -> pa.Table:
    """The rows [first, end) of a plan, without reading all of it."""
    with open_table(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        groups = [group for group, size in enumerate(sizes) if starts[group] < end and starts[group] + size > first]
        if not groups:
            return PLAN_SCHEMA.empty_table()
        return file.read_row_groups(groups).slice(first - int(starts[groups[0]]), end - first)
