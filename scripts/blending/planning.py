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
from scripts.blending.plan_summary import example_text
from scripts.blending.plan_table import build_table
from scripts.blending.ragged import starts_from_lengths
from scripts.blending.randomness import Draws
from scripts.blending.selection import (
    NOT_HELD_OUT,
    USABLE,
    HeldOut,
    count_reasons,
    draw_records,
    judge_heldout,
    judge_training,
    requested_count,
)
from scripts.blending.truncation import REASONS, TOO_MANY_IMAGES, TOO_MANY_TOKENS, Truncated, truncate
from scripts.common.errors import UserError
from scripts.common.table_hash import table_sha256
from scripts.config.blend import BlendDatasetConfig, PlanConfig

HELDOUT = "heldout"
_EXAMPLES = 20
"""Examples in the manifest for each reason why conversations are dropped."""


@dataclass(frozen=True)
class _Drawn:
    """The conversations of one entry, and its account in the plan's manifest: how they were drawn."""

    name: str
    conversations: Conversations
    account: dict[str, Any]


def make_plan(
    corpus: Corpus,
    held_out: HeldOut,
    tokens: TokenTables,
    blend: str,
    settings: PlanConfig,
    epoch: int | None,
    evaluated: np.ndarray | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """One epoch of a blend, or its held-out part where `epoch` is None, and its manifest.

    `evaluated` (images of the catalogue,) bool: those that held-out rows show without being held out themselves; the
    manifest counts the conversations that may be trained on and show one.

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
    overlap = np.zeros(len(corpus), bool)
    if epoch is not None and evaluated is not None:
        overlap = corpus.images_marked(evaluated).some
    drawn = [_draw(corpus, draws, name, entry, settings, verdicts, overlap) for name, entry in entries.items()]
    if not drawn:
        raise UserError(f"no dataset of the blend {blend} has started by the end of epoch {number}: lower an `after`")
    conversations = stack([part.conversations for part in drawn])
    owner = np.repeat(np.arange(len(drawn)), [len(part.conversations) for part in drawn])
    truncated = truncate(corpus, conversations, tokens.template, settings.sequence, settings.max_images)
    if epoch is not None and len(truncated.kept) == 0:
        every = np.ones(len(truncated.dropped.reasons), bool)
        dropped = _dropped_conversations(corpus, conversations, truncated, every, settings)
        raise UserError(_why_empty(blend, number, drawn, dropped))

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

    accounts = {}
    for entry, part in enumerate(drawn):
        lost = owner[truncated.dropped.conversations] == entry
        dropped = _dropped_conversations(corpus, conversations, truncated, lost, settings)
        accounts[part.name] = part.account | {"dropped_conversations": dropped} | _account(truncated, owner, entry)
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
    corpus: Corpus,
    draws: Draws,
    name: str,
    entry: BlendDatasetConfig,
    settings: PlanConfig,
    verdicts: np.ndarray,
    overlap: np.ndarray,
) -> _Drawn:
    """Draw the records of one entry and make conversations of them.

    `verdicts` judge every record of the corpus; `overlap` (records,) bool: those that show an image of a held-out row.
    """
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
    if count := int(overlap[usable].sum()):
        account["overlap"] = count
    if parts:
        account["joins"] = settings.component_datasets(name)
    return _Drawn(name, conversations, account)


def _requested(entry: BlendDatasetConfig) -> dict[str, Any]:
    return entry.model_dump(include={"samples", "repeat", "proportion", "concat", "after"})


def _account(truncated: Truncated, owner: np.ndarray, entry: int) -> dict[str, Any]:
    """What became of the conversations of one entry."""
    mine = owner[truncated.kept] == entry
    return {
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


def _dropped_conversations(
    corpus: Corpus, conversations: Conversations, truncated: Truncated, selected: np.ndarray, settings: PlanConfig
) -> dict[str, dict[str, Any]]:
    """Why `selected` (dropped conversations,) bool were dropped: per reason how many, and the first of them.

    An example has the uids of its records, and with all that it must show its tokens or images against the limit.
    """
    numbers, reasons, n_tokens, n_images = (column[selected] for column in truncated.dropped)
    firsts = starts_from_lengths(conversations.sizes)
    found = {}
    for reason in np.unique(reasons).tolist():
        mine = np.flatnonzero(reasons == reason)
        examples = []
        for index in mine[:_EXAMPLES].tolist():
            pieces = np.arange(firsts[numbers[index]], firsts[numbers[index] + 1])
            example: dict[str, Any] = {"uids": [uid.decode() for uid in corpus.uids_at(conversations.records[pieces])]}
            if reason == TOO_MANY_TOKENS:
                example |= {"tokens": int(n_tokens[index]), "limit": settings.sequence}
            elif reason == TOO_MANY_IMAGES:
                example |= {"images": int(n_images[index]), "limit": settings.max_images}
            examples.append(example)
        found[REASONS[reason]] = {"count": len(mine), "examples": examples}
    return found


def _licences(corpus: Corpus, conversations: Conversations, truncated: Truncated) -> dict[str, int]:
    """Records shown per licence; a record counts once for every time it is shown."""
    shown = corpus.licences.take(pa.array(conversations.records[truncated.pieces.values]))
    return dict(sorted((count["values"], count["counts"]) for count in pc.value_counts(shown).to_pylist()))


def _why_empty(blend: str, epoch: int, drawn: list[_Drawn], dropped: dict[str, dict[str, Any]]) -> str:
    details = "; ".join(
        f"{part.name}: {part.account['records']} records, {part.account['usable']} usable"
        + "".join(f", {count} {reason}" for reason, count in part.account["dropped"].items())
        for part in drawn
    )
    lost = "".join(
        f"; {account['count']} conversations dropped: {reason.replace('_', ' ')}, such as "
        + example_text(account["examples"][0])
        for reason, account in dropped.items()
    )
    return f"epoch {epoch} of the blend {blend} would hold no conversation ({details}{lost})"
