"""Conversations before they are truncated and ordered: which records they show, with which numbers and choices.

A conversation is a sequence of *pieces*; a piece shows some rounds of one record. One piece is a conversation as the
dataset has it, several are a concatenation or a join. The piece's offset is added to the record's image indices: its
image I has the number I + offset + 1 in the conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from scripts.blending.corpus import Corpus
from scripts.blending.permutation import unrank_permutations
from scripts.blending.ragged import Ragged, concat_ranges, concatenate_ragged, segment_cumsum, starts_from_lengths
from scripts.blending.randomness import Draws
from scripts.common.records import MAX_PERMUTED
from scripts.config.blend import BlendDatasetConfig

_FACTORIALS = np.array([factorial(size) for size in range(MAX_PERMUTED + 1)])


@dataclass(frozen=True)
class Conversations:
    """Columns over conversations (`sizes`, `keys`, `required`) and over their pieces (all others).

    `sizes`: pieces per conversation. `keys`: uint64 to shuffle by. `required`: rounds that must survive truncation.
    `records`: rows of the corpus. `copies`: which copy of the record it is, from 0. `offsets`: see above. `named`:
    questions name the image that they are about. `choices`: one integer per choice group of the record. `rounds`:
    rounds of the record in the order in which they are shown.
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


class Groups(NamedTuple):
    """Records divided into groups: their order (n,), and the sizes of the groups, which add up to n."""

    order: np.ndarray
    sizes: np.ndarray


class ChoiceGroups(NamedTuple):
    """The choice groups of some records.

    `numbers`: per record the numbers of its groups in the corpus. `n_values`: how many values the choice of each group
    has, (groups,). `names`: their names.
    """

    numbers: Ragged
    n_values: np.ndarray
    names: pa.DictionaryArray


def stack(parts: Sequence[Conversations]) -> Conversations:
    """All conversations of `parts`, one part after the other."""
    return Conversations(
        sizes=np.concatenate([part.sizes for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
        required=np.concatenate([part.required for part in parts]),
        records=np.concatenate([part.records for part in parts]),
        copies=np.concatenate([part.copies for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        named=np.concatenate([part.named for part in parts]),
        choices=concatenate_ragged([part.choices for part in parts]),
        rounds=concatenate_ragged([part.rounds for part in parts]),
    )


def single_dataset(
    corpus: Corpus, draws: Draws, name: str, entry: BlendDatasetConfig, records: np.ndarray, copies: np.ndarray
) -> Conversations:
    """Drawn records of one dataset as conversations, concatenated by 1 to `entry.concat`."""
    uids = list(corpus.uids_at(records)) if entry.concat > 1 else []
    groups = group_records(draws, name, uids, copies, entry.concat)
    records, copies = records[groups.order], copies[groups.order]
    starts = starts_from_lengths(groups.sizes)
    images = corpus.images.lengths[records]
    choices = draw_choices(corpus, draws, records, copies)
    first = starts[:-1]
    return Conversations(
        sizes=groups.sizes,
        keys=draws.keys(corpus.uids_at(records[first]), copies[first], f"{name} order"),
        required=np.ones(len(groups.sizes), np.int64),
        records=records,
        copies=copies,
        offsets=segment_cumsum(images, starts) - images,
        named=np.zeros(len(records), bool),
        choices=choices,
        rounds=shown_rounds(corpus, records, choices),
    )


def group_records(draws: Draws, name: str, uids: Sequence[bytes], copies: np.ndarray, limit: int) -> Groups:
    """Divide records, in an order by hash, into groups of 1 to `limit` that are concatenated.

    `copies` (n,): which copy of its record each is. A group never holds two copies of one record, so groups end where
    the next copy begins. With a limit of 1 no `uids` are needed.
    """
    if limit == 1:
        return Groups(np.arange(len(copies)), np.ones(len(copies), np.int64))
    order = np.lexsort((draws.keys(uids, copies, f"{name} group"), copies))
    # A size belongs to the record that begins a group. Drawing one for every record is faster than finding out first
    # which of them do.
    drawn = 1 + draws.below(np.full(len(copies), limit), uids, copies, f"{name} size")[order]
    ends = np.searchsorted(copies[order], copies[order], side="right")
    reach = np.minimum(drawn, ends - np.arange(len(order))).tolist()
    sizes, start = [], 0
    while start < len(order):
        sizes.append(reach[start])
        start += reach[start]
    return Groups(order, np.array(sizes, np.int64))


def draw_choices(corpus: Corpus, draws: Draws, records: np.ndarray, copies: np.ndarray) -> Ragged:
    """One integer per choice group of each record: an alternative, or the rank of a permutation."""
    groups = choice_groups(corpus, records)
    drawn = np.empty(len(groups.n_values), np.int64)
    owners, codes = groups.numbers.rows, groups.names.indices.to_numpy()
    for code, group_name in enumerate(groups.names.dictionary.to_pylist()):
        mine = np.flatnonzero(codes == code)
        uids = corpus.uids_at(records[owners[mine]])
        drawn[mine] = draws.below(groups.n_values[mine], uids, copies[owners[mine]], f"choose {group_name}")
    return Ragged(drawn, groups.numbers.starts)


def choice_groups(corpus: Corpus, records: np.ndarray) -> ChoiceGroups:
    """The choice groups of the given rows of the corpus."""
    lengths = corpus.group_sizes.lengths[records]
    numbers = Ragged.from_lengths(concat_ranges(corpus.group_sizes.starts[:-1][records], lengths), lengths)
    sizes, permuted = corpus.group_sizes.values[numbers.values], corpus.group_permutes.values[numbers.values]
    n_values = np.where(permuted, _FACTORIALS[np.where(permuted, sizes, 0)], sizes)
    names = corpus.group_names.take(pa.array(numbers.values)).dictionary_encode()
    return ChoiceGroups(numbers, n_values, names)


def shown_rounds(corpus: Corpus, records: np.ndarray, choices: Ragged) -> Ragged:
    """All rounds of each record in the order in which they are shown."""
    lengths = corpus.n_rounds[records]
    rounds = Ragged.from_lengths(concat_ranges(np.zeros(len(records), np.int64), lengths), lengths)
    ranks = choices.values[corpus.group_permutes.take(records).values]
    permuted = np.flatnonzero(corpus.permuted[records])
    for size in np.unique(lengths[permuted]).tolist():
        mine = lengths[permuted] == size
        positions = rounds.starts[permuted[mine], None] + np.arange(size)
        rounds.values[positions] = unrank_permutations(ranks[mine], size)
    return rounds
