"""Makes one part of a plan from its inputs on disk: records, token tables, media indexes and the hold-out."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scripts.blending.corpus import load_corpus
from scripts.blending.plan_inputs import check_images, equal_images, read_held_out, read_token_tables
from scripts.blending.plan_table import manifest_path
from scripts.blending.planning import HELDOUT, make_plan
from scripts.blending.selection import HeldOut
from scripts.blending.small_sets import hold_out_of_each
from scripts.common.files import write_json, write_table
from scripts.config.blend import PlanConfig


def write_plan(
    name: str,
    settings: PlanConfig,
    epoch: int | None,
    *,
    records: Path,
    tokens: Path,
    split: Path,
    media: dict[str, Path],
    out: Path,
) -> dict[str, Any]:
    """Plan one epoch, or the held-out part where `epoch` is None, into the folder `out`; return the manifest.

    Raises:
        UserError: inputs are missing or do not belong together, or the plan would be empty.
    """
    datasets = settings.records()
    token_tables = read_token_tables(
        records, tokens, datasets, settings.max_images, settings.followup_datasets(), settings.joined_datasets()
    )
    corpus = load_corpus(records, tokens, datasets)
    # Memory freed by reading would stay with the process, in addition to what the plan needs.
    pa.default_memory_pool().release_unused()
    check_images(corpus, media)
    held_out = HeldOut.of(corpus, read_held_out(corpus, split))
    held_out = hold_out_of_each(corpus, held_out, settings.own, settings.mixed)
    evaluated = None
    if held_out.records.any():
        shown = held_out.records[corpus.images.rows]
        marked = np.zeros(len(corpus.catalogue), bool)
        marked[corpus.images.values[shown]] = True
        evaluated = equal_images(corpus, media, marked) & ~held_out.images
    table, manifest = make_plan(corpus, held_out, token_tables, name, settings, epoch, evaluated)
    path = out / f"{HELDOUT if epoch is None else f'epoch-{epoch:03d}'}.parquet"
    write_table(path, table)
    write_json(manifest_path(path), manifest)
    return manifest
