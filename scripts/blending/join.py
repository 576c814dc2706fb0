"""Joins on images: conversations about single images, joined with one about all of them.

For every record of one dataset (`over`, in the paper pairs of `otter_mimicit_cgd`) a joined conversation shows

    openings     image by image, conversations of other datasets (`talk`, in the paper `llava` and `llava_dial`) about
                 that image alone: at least one, except for the last of several images
    comparison   rounds of the record itself
    follow-ups   rounds that the openings, or conversations that were not shown, have left; each names its image

No round is shown twice. It is a join n:m: a record of `talk` is shown with every record of `over` that shows its image,
and a record of `over` with many of `talk`.

All draws belong to the record of `over`, so two joins that share an image do not influence each other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np

from scripts.blending.conversations import Conversations, choice_groups, shown_rounds
from scripts.blending.corpus import Corpus
from scripts.blending.ragged import Ragged, concat_ranges, concatenate_ragged
from scripts.blending.randomness import Draws, python_values
from scripts.blending.selection import NO_CONVERSATION, REPEATS_IMAGE, USABLE
from scripts.config.blend import BlendDatasetConfig

_OPENING, _COMPARISON, _FOLLOW_UP = range(3)

Purposes = Callable[[np.ndarray], Iterable[bytes]]
"""What the draws with the given numbers are for: made one by one, because millions of texts fill the memory."""


@dataclass(frozen=True)
class _Candidates:
    """Records that joins may show, one entry per join and record, all (n,).

    `joins`: number of the join. `offsets`: number of the join's image that the record is about, from 0. `choices` and
    `rounds`: what is drawn for the record, and its rounds in the order in which they are shown.
    """

    joins: np.ndarray
    records: np.ndarray
    offsets: np.ndarray
    choices: Ragged
    rounds: Ragged

    def __len__(self) -> int:
        return len(self.joins)


class _Openings(NamedTuple):
    """The single-image conversations of every join: all that there are, and those shown before the comparison.

    `candidates`: all of them, by join, image and drawn order. `shown`: (s,) entries of `candidates` that are shown.
    `n_rounds`: (n,) how many rounds of each candidate are shown, mostly 0.
    """

    candidates: _Candidates
    shown: np.ndarray
    n_rounds: np.ndarray


class _Pieces(NamedTuple):
    """Pieces of joined conversations, all columns (n,): rounds of one candidate that are shown together.

    `orders` sort the pieces of one phase of a join. A piece shows `n_rounds` rounds of `candidates`, beginning with
    its round number `first_rounds` in the order of display.
    """

    joins: np.ndarray
    phases: np.ndarray
    orders: np.ndarray
    candidates: np.ndarray
    first_rounds: np.ndarray
    n_rounds: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["_Pieces"]) -> "_Pieces":
        """All pieces, part after part."""
        return cls._make(np.concatenate(columns) for columns in zip(*parts, strict=True))

    def sort(self) -> "_Pieces":
        """The pieces by join, phase and order."""
        order = np.lexsort((self.orders, self.phases, self.joins))
        return _Pieces._make(column[order] for column in self)


class _Drawers(NamedTuple):
    """Whose draws they are and what for, one entry per draw, in the form that `Draws` takes."""

    uids: Iterable[bytes]
    copies: np.ndarray
    purposes: Iterable[bytes]


class Joiner:
    """Joins the records of a corpus, all of them at once.

    Args:
        name: of the blend's entry.
        single_image_datasets: datasets of conversations about single images (`talk` in the configuration).
        usable: whether each record may be shown, (records,) bool.
    """

    def __init__(
        self,
        corpus: Corpus,
        draws: Draws,
        name: str,
        entry: BlendDatasetConfig,
        single_image_datasets: Sequence[str],
        usable: np.ndarray,
    ) -> None:
        self.corpus, self.draws, self.name, self.entry = corpus, draws, name.encode(), entry
        self._about_image = _single_image_records(corpus, single_image_datasets, usable)

    def judge(self, rows: np.ndarray) -> np.ndarray:
        """Why the records `rows` cannot be joined, as an index into `selection.REASONS`."""
        images = self.corpus.images.take(rows)
        uncovered = self._about_image.lengths[images.values] == 0
        uncovered[images.starts[1:][images.lengths > 1] - 1] = False
        lacking = np.bincount(images.rows[uncovered], minlength=len(rows)) > 0
        distinct = np.unique(np.stack([images.rows, images.values]), axis=1)
        repeats = np.bincount(distinct[0], minlength=len(rows)) < images.lengths
        return np.select([repeats, lacking | (images.lengths == 0)], [REPEATS_IMAGE, NO_CONVERSATION], USABLE)

    def conversations(self, records: np.ndarray, copies: np.ndarray) -> Conversations:
        """One conversation per record and copy; `records` have been judged usable."""
        joins = np.arange(len(records))
        self._uids, self._copies = list(self.corpus.uids_at(records)), copies
        openings = self._openings(records)
        over = self._candidates(joins, records, np.zeros(len(records), np.int64))
        compared = 1 + self._below(over.rounds.lengths, joins, _always(b"comparisons"))
        follow_ups = self._follow_ups(openings, len(records)) if self.entry.followup else np.empty(0, np.int64)
        pieces = _pieces(openings, compared, follow_ups)

        candidates = openings.candidates
        rounds = concatenate_ragged([candidates.rounds, over.rounds])
        n_opening = np.where(pieces.phases == _OPENING, pieces.n_rounds, 0)
        before = np.bincount(pieces.joins, n_opening, minlength=len(records)).astype(np.int64)
        first = rounds.starts[:-1][pieces.candidates] + pieces.first_rounds
        return Conversations(
            sizes=np.bincount(pieces.joins, minlength=len(records)),
            keys=self.draws.keys(self._uids, copies, f"{self.name.decode()} order"),
            required=before + 1,
            records=np.concatenate([candidates.records, over.records])[pieces.candidates],
            copies=copies[pieces.joins],
            offsets=np.concatenate([candidates.offsets, over.offsets])[pieces.candidates],
            named=pieces.phases == _FOLLOW_UP,
            choices=concatenate_ragged([candidates.choices, over.choices]).take(pieces.candidates),
            rounds=Ragged.from_lengths(rounds.values[concat_ranges(first, pieces.n_rounds)], pieces.n_rounds),
        )

    def _openings(self, records: np.ndarray) -> _Openings:
        """Draw which single-image conversations each join shows before its comparison, and how much of each."""
        images = self.corpus.images.take(records)
        join = images.rows
        offset = np.arange(len(join)) - images.starts[:-1][join]
        available = self._about_image.lengths[images.values]
        last = (offset == images.lengths[join] - 1) & (offset > 0)
        least, most = (~last).astype(np.int64), np.minimum(available, self.entry.conversations)
        count = least + self._below(
            most - least + 1,
            join,
            lambda some: (b"conversations on %d" % number for number in python_values(offset[some])),
        )

        about = self._about_image.take(images.values)
        image = about.rows
        order = np.lexsort((self._keys(join[image], self._about_each(b"show", about.values)), image))
        image, found = image[order], about.values[order]
        candidates = self._candidates(join[image], found, offset[image])
        shown = np.flatnonzero(np.arange(len(image)) - about.starts[:-1][image] < count[image])
        n_rounds = np.zeros(len(image), np.int64)
        limit = np.minimum(candidates.rounds.lengths[shown], self.entry.rounds)
        purposes = self._about_each(b"rounds of", found[shown])
        n_rounds[shown] = 1 + self._below(limit, candidates.joins[shown], purposes)
        return _Openings(candidates, shown, n_rounds)

    def _follow_ups(self, openings: _Openings, n_joins: int) -> np.ndarray:
        """The candidates whose next round is asked after the comparison, in the order in which they are."""
        candidates = openings.candidates
        left = np.flatnonzero(openings.n_rounds < candidates.rounds.lengths)
        keys = self._keys(candidates.joins[left], self._about_each(b"follow", candidates.records[left]))
        left = left[np.lexsort((keys, candidates.joins[left]))]
        join, available = candidates.joins[left], np.bincount(candidates.joins[left], minlength=n_joins)
        limit = np.minimum(available, self.entry.followups)
        count = self._below(limit + 1, np.arange(n_joins), _always(b"follow-ups"))
        rank = np.arange(len(left)) - (np.cumsum(available) - available)[join]
        return left[rank < count[join]]

    def _candidates(self, joins: np.ndarray, records: np.ndarray, offsets: np.ndarray) -> _Candidates:
        """Draw the choices of records that joins show, and with them the order of their rounds."""
        groups = choice_groups(self.corpus, records)
        labels = [name.encode() for name in groups.names.dictionary.to_pylist()]
        codes = groups.names.indices.to_numpy()
        owners = groups.numbers.rows

        def purposes(some: np.ndarray) -> Iterable[bytes]:
            uids = self.corpus.uids_at(records[owners[some]])
            names = map(labels.__getitem__, python_values(codes[some]))
            return (b"choose %b of %b" % (name, uid) for name, uid in zip(names, uids, strict=True))

        choices = Ragged(self._below(groups.n_values, joins[owners], purposes), groups.numbers.starts)
        return _Candidates(joins, records, offsets, choices, shown_rounds(self.corpus, records, choices))

    def _about_each(self, what: bytes, records: np.ndarray) -> Purposes:
        """Purposes that name a record each."""
        return lambda some: (b"%b %b" % (what, uid) for uid in self.corpus.uids_at(records[some]))

    def _below(self, sizes: np.ndarray, joins: np.ndarray, purposes: Purposes) -> np.ndarray:
        """Draws of joins, each below its size, (n,); a hash is not needed to choose the only one."""
        drawn, some = np.zeros(len(sizes), np.int64), np.flatnonzero(sizes > 1)
        drawers = self._drawers(joins, purposes, some)
        drawn[some] = self.draws.below(sizes[some], drawers.uids, drawers.copies, drawers.purposes)
        return drawn

    def _keys(self, joins: np.ndarray, purposes: Purposes) -> np.ndarray:
        """Keys of joins to sort by, (n,) uint64."""
        drawers = self._drawers(joins, purposes, np.arange(len(joins)))
        return self.draws.keys(drawers.uids, drawers.copies, drawers.purposes)

    def _drawers(self, joins: np.ndarray, purposes: Purposes, some: np.ndarray) -> _Drawers:
        """The draws with the numbers `some`."""
        uids = map(self._uids.__getitem__, python_values(joins[some]))
        return _Drawers(uids, self._copies[joins[some]], (b"%b %b" % (self.name, text) for text in purposes(some)))


def _pieces(openings: _Openings, compared: np.ndarray, follow_ups: np.ndarray) -> _Pieces:
    """Everything that is shown, in its order.

    `compared` (joins,): rounds of each comparison, whose candidates have the numbers behind those of the openings.
    """
    candidates, shown, n_rounds = openings
    joins = np.arange(len(compared))
    parts = [
        _Pieces(candidates.joins[shown], _filled(shown, _OPENING), shown, shown, _filled(shown, 0), n_rounds[shown]),
        _Pieces(joins, _filled(joins, _COMPARISON), joins, joins + len(candidates), _filled(joins, 0), compared),
        _Pieces(
            candidates.joins[follow_ups],
            _filled(follow_ups, _FOLLOW_UP),
            np.arange(len(follow_ups)),
            follow_ups,
            n_rounds[follow_ups],
            _filled(follow_ups, 1),
        ),
    ]
    return _Pieces.concatenate(parts).sort()


def _always(purpose: bytes) -> Purposes:
    return lambda some: repeat(purpose, len(some))


def _single_image_records(corpus: Corpus, datasets: Sequence[str], usable: np.ndarray) -> Ragged:
    """For every image of the catalogue the usable records of `datasets` that are about it alone."""
    rows = np.concatenate([corpus.rows_of(name) for name in datasets])
    rows = rows[usable[rows] & (corpus.images.lengths[rows] == 1)]
    image = corpus.images.values[corpus.images.starts[:-1][rows]]
    counts = np.bincount(image, minlength=len(corpus.catalogue))
    return Ragged.from_lengths(rows[np.argsort(image, kind="stable")], counts)


def _filled(like: np.ndarray, value: int) -> np.ndarray:
    return np.full(len(like), value)
