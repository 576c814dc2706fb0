"""The plan as one pure function: records, lengths, hold-out and settings in, one epoch as a table out.

In order: which records may occur, which of them do, how they are concatenated or joined, what each choice group takes,
how long the conversations are and where they are truncated, which of them are packed together, and in which order they
come. Each step is a module of this package.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scripts.blending.conversations import Conversations, single_dataset, stack
from scripts.blending.corpus import Corpus
from scripts.blending.join import Joiner
from scripts.blending.ordering import ConversationStats, arrange
from scripts.blending.plan_inputs import TokenTables
from scripts.blending.plan_table import build_table
from scripts.blending.randomness import Draws
from scripts.blending.selection import (
    NOT_HELD_OUT,
    USABLE,
    count_reasons,
    draw_records,
    judge_heldout,
    judge_training,
    requested_count,
)
from scripts.blending.truncation import Truncated, truncate
from scripts.common.errors import UserError
from scripts.common.table_hash import table_sha256
from scripts.config.blend import BlendDatasetConfig, PlanConfig

HELDOUT = "heldout"


@dataclass(frozen=True)
class _Drawn:
    """The conversations of one entry, and its account in the plan's manifest: how they were drawn."""

    name: str
    conversations: Conversations
    account: dict[str, Any]


def make_plan(
    corpus: Corpus, held_out: np.ndarray, tokens: TokenTables, blend: str, settings: PlanConfig, epoch: int | None
) -> tuple[pa.Table, dict[str, Any]]:
    """One epoch of a blend, or its held-out part where `epoch` is None, and its manifest.

    `held_out` (images of the catalogue,) bool: kept for evaluation.

    Raises:
        UserError: a training epoch would be empty, or a dataset starts later than the others can fill.
    """
    number = epoch if epoch is not None else 0
    entries = _entries(settings, epoch)
    all_splits = settings.parity == "original"
    if epoch is None:
        verdicts = judge_heldout(corpus, held_out, settings.mixed, all_splits)
    else:
        verdicts = judge_training(corpus, held_out, all_splits)
    draws = Draws(settings.seed, number)
    drawn = [_draw(corpus, draws, name, entry, settings, verdicts) for name, entry in entries.items()]
    if not drawn:
        raise UserError(f"no dataset of the blend {blend} has started by the end of epoch {number}: lower an `after`")
    conversations = stack([part.conversations for part in drawn])
    owner = np.repeat(np.arange(len(drawn)), [len(part.conversations) for part in drawn])
    truncated = truncate(corpus, conversations, tokens.template, settings.sequence, settings.max_images)
    if epoch is not None and len(truncated.kept) == 0:
        raise UserError(_why_empty(blend, number, drawn, settings))

    starts = np.array([max(0.0, entry.after - number) for entry in entries.values()])
    owners = owner[truncated.kept]
    stats = ConversationStats(
        keys=conversations.keys[truncated.kept],
        starts=starts[owners],
        tokens=truncated.n_tokens,
        images=truncated.images.lengths,
        owners=owners,
    )
    units = arrange(stats, settings, draws, list(entries))
    joins = [settings.join_of(name) is not None for name in entries]
    table = build_table(corpus, conversations, truncated, units, owners, list(entries), joins, number)

    accounts = {part.name: part.account | _account(truncated, owner, number) for number, part in enumerate(drawn)}
    accounts |= {
        name: {"asked": _requested(entry), "starts_in_epoch": int(entry.after), "realised": 0}
        for name, entry in sorted(settings.datasets.items())
        if name not in entries
    }
    return table, {
        "v": 1,
        "blend": blend,
        "epoch": HELDOUT if epoch is None else epoch,
        "sha256": table_sha256(table),
        "tokens_name": settings.tokens,
        "tokens_identity": tokens.identity,
        "records": tokens.records,
        "seed": settings.seed,
        "sequence": settings.sequence,
        "max_images": settings.max_images,
        "global_batch": settings.global_batch,
        "global_batches": ceil(len(units) / settings.global_batch),
        "packing": settings.packing,
        "pack_images": settings.max_images_per_pack if settings.packing else None,
        "epoch_size": settings.epoch_size,
        "units": len(units),
        "conversations": table.num_rows,
        "rounds": int(truncated.rounds.lengths.sum()),
        "tokens": int(truncated.n_tokens.sum()),
        "labels": int(truncated.n_labels.sum()),
        "images": len(truncated.images.values),
        "licences": _licences(corpus, conversations, truncated),
        "datasets": accounts,
    }


def _entries(settings: PlanConfig, epoch: int | None) -> dict[str, BlendDatasetConfig]:
    """The entries of this part by name: in an epoch those that have started, in the hold-out all, each record once."""
    entries = sorted(settings.datasets.items())
    if epoch is None:
        whole = {"samples": "all", "repeat": 1, "proportion": None, "concat": 1, "after": 0.0}
        return {name: entry.model_copy(update=whole) for name, entry in entries}
    return {name: entry for name, entry in entries if entry.after < epoch + 1}


def _draw(
    corpus: Corpus, draws: Draws, name: str, entry: BlendDatasetConfig, settings: PlanConfig, verdicts: np.ndarray
) -> _Drawn:
    """Draw the records of one entry and make conversations of them; `verdicts` judge every record of the corpus."""
    parts = settings.join_of(name)
    rows = corpus.rows_of(parts.over if parts else name)
    rows = rows[verdicts[rows] != NOT_HELD_OUT]
    judged = verdicts[rows]
    join = None
    if parts:
        # A held-out pair may be joined with conversations about an image that is not held out itself.
        shown = (verdicts == USABLE) | (verdicts == NOT_HELD_OUT)
        join = Joiner(corpus, draws, name, entry, parts.talk, shown)
        judged = np.where(judged == USABLE, join.judge(rows), judged)
    usable = rows[judged == USABLE]
    drawn = draw_records(corpus, draws, name, entry, usable, settings.epoch_size)
    if join:
        conversations = join.conversations(drawn.records, drawn.copies)
    else:
        conversations = single_dataset(corpus, draws, name, entry, drawn.records, drawn.copies)
    account: dict[str, Any] = {
        "asked": _requested(entry),
        "wanted": requested_count(entry, len(usable), settings.epoch_size),
        "records": len(rows),
        "dropped": count_reasons(judged),
        "usable": len(usable),
        "drawn": len(drawn.records),
    }
    if parts:
        account["joins"] = settings.component_datasets(name)
    return _Drawn(name, conversations, account)


def _requested(entry: BlendDatasetConfig) -> dict[str, Any]:
    return entry.model_dump(include={"samples", "repeat", "proportion", "concat", "after"})


def _account(truncated: Truncated, owner: np.ndarray, entry: int) -> dict[str, Any]:
    """What became of the conversations of one entry."""
    mine = owner[truncated.kept] == entry
    return {
        "too_long": int((owner == entry).sum() - mine.sum()),
        "cut": {
            "conversations": int((truncated.rounds_lost[mine] > 0).sum()),
            "rounds": int(truncated.rounds_lost[mine].sum()),
            "records": int(truncated.pieces_lost[mine].sum()),
        },
        "realised": int(mine.sum()),
        "tokens": int(truncated.n_tokens[mine].sum()),
        "labels": int(truncated.n_labels[mine].sum()),
        "images": int(truncated.images.lengths[mine].sum()),
    }


def _licences(corpus: Corpus, conversations: Conversations, truncated: Truncated) -> dict[str, int]:
    """Records shown per licence; a record counts once for every time it is shown."""
    shown = corpus.licences.take(pa.array(conversations.records[truncated.pieces.values]))
    return dict(sorted((count["values"], count["counts"]) for count in pc.value_counts(shown).to_pylist()))


def _why_empty(blend: str, epoch: int, drawn: list[_Drawn], settings: PlanConfig) -> str:
    details = "; ".join(
        f"{part.name}: {part.account['records']} records, {part.account['usable']} usable"
        + "".join(f", {count} {reason}" for reason, count in part.account["dropped"].items())
        + (f", all too long for {settings.sequence} tokens" if part.account["drawn"] else "")
        for part in drawn
    )
    return f"epoch {epoch} of the blend {blend} would hold no conversation ({details})"
