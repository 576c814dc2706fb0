"""The plan as one pure function: records, lengths, hold-out and settings in, one epoch as a table out.

In order: which records may occur, which of them do, how they are concatenated or joined, what each choice group takes,
how long the conversations are and where they are cut, and in which order they come. Each step is a module of this
package.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scripts.blending.content import content_sha256
from scripts.blending.conversations import Conversations, single_dataset, stack
from scripts.blending.corpus import Corpus
from scripts.blending.inputs import Measure
from scripts.blending.join import Join
from scripts.blending.lengths import Cut, cut
from scripts.blending.ordering import shuffle, sort_batches
from scripts.blending.plan_table import build_table
from scripts.blending.randomness import Draws
from scripts.blending.selection import (
    NOT_CONCERNED,
    USABLE,
    count_reasons,
    draw_records,
    judge_heldout,
    judge_training,
)
from scripts.common.errors import UserError
from scripts.sections.blend import JOIN, JOIN_PAIRS, Entry, Planned

HELDOUT = "heldout"


@dataclass(frozen=True)
class _Drawn:
    """The conversations of one entry, and how it came to them."""

    name: str
    conversations: Conversations
    account: dict


def make_plan(
    corpus: Corpus, held_out: np.ndarray, measure: Measure, blend: str, settings: Planned, epoch: int | None
) -> tuple[pa.Table, dict]:
    """One epoch of a blend, or its held-out part where `epoch` is None, and its manifest.

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
    drawn = [_draw(corpus, draws, name, entry, verdicts) for name, entry in entries.items()]
    if not drawn:
        raise UserError(f"no dataset of the blend {blend} has started by the end of epoch {number}: lower an `after`")
    conversations = stack([part.conversations for part in drawn])
    owner = np.repeat(np.arange(len(drawn)), [len(part.conversations) for part in drawn])
    left = cut(corpus, conversations, measure.constants, settings.sequence, settings.max_images)
    if epoch is not None and len(left.kept) == 0:
        raise UserError(_why_empty(blend, number, drawn, settings))

    names = np.array([part.name for part in drawn])
    starts = np.array([max(0.0, entry.after - number) for entry in entries.values()])
    owner_left = owner[left.kept]
    order = shuffle(conversations.keys[left.kept], starts[owner_left], settings.global_batch, names[owner_left])
    order = sort_batches(order, left.n_tokens, settings.global_batch)
    table = build_table(corpus, conversations, left, order, names[owner_left], names[owner_left] == JOIN, number)

    accounts = {part.name: part.account | _account(left, owner, place) for place, part in enumerate(drawn)}
    accounts |= {
        name: {"asked": _asked(entry), "starts_in_epoch": int(entry.after), "realised": 0}
        for name, entry in sorted(settings.datasets.items())
        if name not in entries
    }
    return table, {
        "v": 1,
        "blend": blend,
        "epoch": HELDOUT if epoch is None else epoch,
        "sha256": content_sha256(table),
        "tokens_name": settings.tokens,
        "tokens_identity": measure.identity,
        "records": measure.records,
        "seed": settings.seed,
        "sequence": settings.sequence,
        "max_images": settings.max_images,
        "global_batch": settings.global_batch,
        "global_batches": ceil(table.num_rows / settings.global_batch),
        "units": table.num_rows,
        "conversations": table.num_rows,
        "rounds": int(left.rounds.lengths.sum()),
        "tokens": int(left.n_tokens.sum()),
        "labels": int(left.n_labels.sum()),
        "images": len(left.images.values),
        "licences": _licences(corpus, conversations, left),
        "datasets": accounts,
    }


def _entries(settings: Planned, epoch: int | None) -> dict[str, Entry]:
    """The entries of this part by name: in an epoch those that have started, in the hold-out all, each record once."""
    entries = sorted(settings.datasets.items())
    if epoch is None:
        whole = {"samples": "all", "repeat": 1, "concat": 1, "after": 0.0}
        return {name: entry.model_copy(update=whole) for name, entry in entries}
    return {name: entry for name, entry in entries if entry.after < epoch + 1}


def _draw(corpus: Corpus, draws: Draws, name: str, entry: Entry, verdicts: np.ndarray) -> _Drawn:
    """Draw the records of one entry and make conversations of them; `verdicts` judge every record of the corpus."""
    rows = corpus.rows_of(JOIN_PAIRS if name == JOIN else name)
    rows = rows[verdicts[rows] != NOT_CONCERNED]
    judged = verdicts[rows]
    if name == JOIN:
        # A held-out pair may be joined with talk about an image that is not held out itself.
        join = Join(corpus, draws, entry, (verdicts == USABLE) | (verdicts == NOT_CONCERNED))
        judged = np.where(judged == USABLE, join.judge(rows), judged)
    records, copies = draw_records(corpus, draws, name, entry, rows[judged == USABLE])
    if name == JOIN:
        conversations = join.conversations(records, copies)
    else:
        conversations = single_dataset(corpus, draws, name, entry, records, copies)
    account = {
        "asked": _asked(entry),
        "records": len(rows),
        "dropped": count_reasons(judged),
        "usable": int((judged == USABLE).sum()),
        "drawn": len(records),
    }
    return _Drawn(name, conversations, account)


def _asked(entry: Entry) -> dict:
    return {"samples": entry.samples, "repeat": entry.repeat, "concat": entry.concat, "after": entry.after}


def _account(left: Cut, owner: np.ndarray, entry: int) -> dict:
    """What became of the conversations of one entry."""
    mine = owner[left.kept] == entry
    return {
        "too_long": int((owner == entry).sum() - mine.sum()),
        "cut": {
            "conversations": int((left.rounds_lost[mine] > 0).sum()),
            "rounds": int(left.rounds_lost[mine].sum()),
            "records": int(left.pieces_lost[mine].sum()),
        },
        "realised": int(mine.sum()),
        "tokens": int(left.n_tokens[mine].sum()),
        "labels": int(left.n_labels[mine].sum()),
        "images": int(left.images.lengths[mine].sum()),
    }


def _licences(corpus: Corpus, conversations: Conversations, left: Cut) -> dict[str, int]:
    """Records shown per licence; a record counts once for every time it is shown."""
    shown = corpus.licences.take(pa.array(conversations.records[left.pieces.values]))
    return dict(sorted((count["values"], count["counts"]) for count in pc.value_counts(shown).to_pylist()))


def _why_empty(blend: str, epoch: int, drawn: list[_Drawn], settings: Planned) -> str:
    details = "; ".join(
        f"{part.name}: {part.account['records']} records, {part.account['usable']} usable"
        + "".join(f", {count} {reason}" for reason, count in part.account["dropped"].items())
        + (f", all too long for {settings.sequence} tokens" if part.account["drawn"] else "")
        for part in drawn
    )
    return f"epoch {epoch} of the blend {blend} would hold no conversation ({details})"
