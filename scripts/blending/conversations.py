"""Conversations before they are cut and ordered: which records they show, under which numbers, with which choices.

A conversation is a run of *pieces*; a piece shows some rounds of one record. One piece is a conversation as the dataset
has it, several are a concatenation or a join. The piece's offset is added to the record's image places: its image I has
the number I + offset + 1 in the conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import factorial

import numpy as np
import pyarrow as pa

from scripts.blending.corpus import Corpus
from scripts.blending.permutation import unrank_permutations
from scripts.blending.ragged import Ragged, concat_ranges, segment_cumsum, starts_from_lengths
from scripts.blending.randomness import Draws
from scripts.common.records import MAX_PERMUTED
from scripts.config.blend import BlendDatasetConfig

_FACTORIALS = np.array([factorial(size) for size in range(MAX_PERMUTED + 1)])


@dataclass(frozen=True)
class Conversations:
    """Columns over conversations (`sizes`, `keys`, `required`) and over their pieces (all others).

    `sizes`: pieces per conversation. `keys`: uint64 to shuffle by. `required`: rounds that must survive a cut.
    `rounds`: record rounds of each piece in the order in which they are shown. `named`: questions say which image they
    mean.
    """

    sizes: np.ndarray
    keys: np.ndarray
    required: np.ndarray
    records: np.ndarray
    copies: np.ndarray
    offsets: np.ndarray
    named: np.ndarray
    choices: Ragged
    rounds: Ragged

    def __len__(self) -> int:
        return len(self.sizes)


def stack(parts: Sequence[Conversations]) -> Conversations:
    """All conversations of `parts`, one part after the other."""
    columns = {}
    for field in fields(Conversations):
        values = [getattr(part, field.name) for part in parts]
        if field.type is Ragged:
            lengths = np.concatenate([value.lengths for value in values])
            columns[field.name] = Ragged.from_lengths(np.concatenate([value.values for value in values]), lengths)
        else:
            columns[field.name] = np.concatenate(values)
    return Conversations(**columns)


def single_dataset(
    corpus: Corpus, draws: Draws, name: str, entry: BlendDatasetConfig, records: np.ndarray, copies: np.ndarray
) -> Conversations:
    """Drawn records of one dataset as conversations, concatenated by 1 to `entry.concat`."""
    uids = list(corpus.uids_at(records)) if entry.concat > 1 else []
    order, sizes = concatenate(draws, name, uids, copies, entry.concat)
    records, copies = records[order], copies[order]
    starts = starts_from_lengths(sizes)
    images = corpus.images.lengths[records]
    choices = draw_choices(corpus, draws, records, copies)
    first = starts[:-1]
    return Conversations(
        sizes=sizes,
        keys=draws.keys(corpus.uids_at(records[first]), copies[first], f"{name} order"),
        required=np.ones(len(sizes), np.int64),
        records=records,
        copies=copies,
        offsets=segment_cumsum(images, starts) - images,
        named=np.zeros(len(records), bool),
        choices=choices,
        rounds=shown_rounds(corpus, records, choices),
    )


def concatenate(
    draws: Draws, name: str, uids: Sequence[bytes], copies: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Truncated records, in an order by hash, into groups of 1 to `limit`.

    Returns the order (n,) and the sizes of the groups, which add up to n. A group never holds two copies of one record,
    so groups end where the next copy begins. With a limit of 1 no `uids` are needed.
    """
    if limit == 1:
        return np.arange(len(copies)), np.ones(len(copies), np.int64)
    order = np.lexsort((draws.keys(uids, copies, f"{name} group"), copies))
    # A size belongs to the record that begins a group. Drawing one for every record is faster than finding out first
    # which of them do.
    drawn = 1 + draws.below(np.full(len(copies), limit), uids, copies, f"{name} size")[order]
    ends = np.searchsorted(copies[order], copies[order], side="right")
    reach = np.minimum(drawn, ends - np.arange(len(order))).tolist()
    sizes, place = [], 0
    while place < len(order):
        sizes.append(reach[place])
        place += reach[place]
    return order, np.array(sizes, np.int64)


def draw_choices(corpus: Corpus, draws: Draws, records: np.ndarray, copies: np.ndarray) -> Ragged:
    """One integer per choice group of each record: an alternative, or the rank of an order."""
    groups, sizes, names = choice_groups(corpus, records)
    drawn = np.empty(len(sizes), np.int64)
    owners = groups.rows
    for code, name in enumerate(names.dictionary.to_pylist()):
        mine = np.flatnonzero(names.indices.to_numpy() == code)
        uids = corpus.uids_at(records[owners[mine]])
        drawn[mine] = draws.below(sizes[mine], uids, copies[owners[mine]], f"choose {name}")
    return Ragged(drawn, groups.starts)


def choice_groups(corpus: Corpus, records: np.ndarray) -> tuple[Ragged, np.ndarray, pa.DictionaryArray]:
    """The choice groups of records by number, how many values the choice of each has, and their names."""
    lengths = corpus.group_sizes.lengths[records]
    groups = Ragged.from_lengths(concat_ranges(corpus.group_sizes.starts[:-1][records], lengths), lengths)
    sizes, permuted = corpus.group_sizes.values[groups.values], corpus.group_permutes.values[groups.values]
    names = corpus.group_names.take(pa.array(groups.values)).dictionary_encode()
    return groups, np.where(permuted, _FACTORIALS[np.where(permuted, sizes, 0)], sizes), names


def shown_rounds(corpus: Corpus, records: np.ndarray, choices: Ragged) -> Ragged:
    """All rounds of each record in the order in which they are shown."""
    lengths = corpus.n_rounds[records]
    rounds = Ragged.from_lengths(concat_ranges(np.zeros(len(records), np.int64), lengths), lengths)
    ranks = choices.values[corpus.group_permutes.take(records).values]
    pieces = np.flatnonzero(corpus.permuted[records])
    for size in np.unique(lengths[pieces]).tolist():
        mine = lengths[pieces] == size
        places = rounds.starts[pieces[mine], None] + np.arange(size)
        rounds.values[places] = unrank_permutations(ranks[mine], size)
    return rounds
