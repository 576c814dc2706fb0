"""Joins on images: conversations about single images, joined with one about all of them.

For every record of one dataset (`over`, in the paper pairs of `otter_mimicit_cgd`) the join shows, image by image,
conversations of other datasets (`talk`, in the paper `llava` and `llava_dial`) about that image (at least one, except
for the last of several images), then rounds of the record itself, then follow-up rounds about one image, taken from
what its conversations have left and naming the image they mean. No round is shown twice. It is a join n:m: a record of
`talk` is shown with every record of `over` that shows its image, and a record of `over` with many of `talk`.

All draws belong to the record of `over`, so two joins that share an image do not influence each other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from scripts.blending.conversations import Conversations, choice_groups, shown_rounds
from scripts.blending.corpus import Corpus
from scripts.blending.ragged import Ragged, concat_ranges
from scripts.blending.randomness import Draws, python_values
from scripts.blending.selection import NO_CONVERSATION, REPEATS_IMAGE, USABLE
from scripts.config.blend import BlendDatasetConfig

_TALK, _COMPARISON, _FOLLOW_UP = range(3)


@dataclass(frozen=True)
class _Shown:
    """Records that joins may show, one entry per record and join: the join, the image place, and what is drawn."""

    joins: np.ndarray
    records: np.ndarray
    offsets: np.ndarray
    choices: Ragged
    rounds: Ragged


class Joiner:
    """Joins the records of a corpus, all of them at once.

    Args:
        name: of the blend's entry.
        talk: datasets of conversations about single images.
        usable: whether each record may be shown.
    """

    def __init__(
        self,
        corpus: Corpus,
        draws: Draws,
        name: str,
        entry: BlendDatasetConfig,
        talk: Sequence[str],
        usable: np.ndarray,
    ):
        self.corpus, self.draws, self.name, self.entry = corpus, draws, name.encode(), entry
        self._about = _single_image_records(corpus, talk, usable)

    def judge(self, rows: np.ndarray) -> np.ndarray:
        """Why the records `rows` cannot be joined, as an index into `selection.REASONS`."""
        images = self.corpus.images.take(rows)
        silent = self._about.lengths[images.values] == 0
        silent[images.starts[1:][images.lengths > 1] - 1] = False
        lacking = np.bincount(images.rows[silent], minlength=len(rows)) > 0
        distinct = np.unique(np.stack([images.rows, images.values]), axis=1)
        repeats = np.bincount(distinct[0], minlength=len(rows)) < images.lengths
        return np.select([repeats, lacking | (images.lengths == 0)], [REPEATS_IMAGE, NO_CONVERSATION], USABLE)

    def conversations(self, records: np.ndarray, copies: np.ndarray) -> Conversations:
        """One conversation per record and copy; `records` have been judged usable."""
        joins, zeros = np.arange(len(records)), np.zeros(len(records), np.int64)
        self._uids, self._copies = list(self.corpus.uids_at(records)), copies
        talk, shown, used = self._talk(records)
        over = self._shown(joins, records, zeros)
        compared = 1 + self._below(over.rounds.lengths, joins, _always(b"comparisons"))
        follow = self._follow_ups(talk, used, len(records)) if self.entry.followup else np.empty(0, np.int64)

        # Everything that is shown, as (join, phase, order in it, entry of the pool, first round, rounds).
        pool = len(talk.joins)
        pieces = np.concatenate(
            [
                np.stack([talk.joins[shown], _of(shown, _TALK), shown, shown, _of(shown, 0), used[shown]]),
                np.stack([joins, _of(joins, _COMPARISON), joins, joins + pool, zeros, compared]),
                np.stack(
                    [
                        talk.joins[follow],
                        _of(follow, _FOLLOW_UP),
                        np.arange(len(follow)),
                        follow,
                        used[follow],
                        _of(follow, 1),
                    ]
                ),
            ],
            axis=1,
        )
        owner, phase, _, entry, first, count = pieces[:, np.lexsort(pieces[2::-1])]
        rounds = _joined(talk.rounds, over.rounds)
        before = np.bincount(owner[phase == _TALK], count[phase == _TALK], minlength=len(records))
        return Conversations(
            sizes=np.bincount(owner, minlength=len(records)),
            keys=self.draws.keys(self._uids, copies, f"{self.name.decode()} order"),
            required=before.astype(np.int64) + 1,
            records=np.concatenate([talk.records, over.records])[entry],
            copies=copies[owner],
            offsets=np.concatenate([talk.offsets, over.offsets])[entry],
            named=phase == _FOLLOW_UP,
            choices=_joined(talk.choices, over.choices).take(entry),
            rounds=Ragged.from_lengths(rounds.values[concat_ranges(rounds.starts[:-1][entry] + first, count)], count),
        )

    def _talk(self, records: np.ndarray) -> tuple[_Shown, np.ndarray, np.ndarray]:
        """Talk about the images of every join, by join, image and drawn order.

        Also the places (s,) of what is shown before the comparison, and how many rounds of each are (n,), mostly 0.
        """
        images = self.corpus.images.take(records)
        join = images.rows
        place = np.arange(len(join)) - images.starts[:-1][join]
        available = self._about.lengths[images.values]
        last = (place == images.lengths[join] - 1) & (place > 0)
        least, most = (~last).astype(np.int64), np.minimum(available, self.entry.conversations)
        count = least + self._below(
            most - least + 1,
            join,
            lambda some: (b"conversations on %d" % offset for offset in python_values(place[some])),
        )

        about = self._about.take(images.values)
        slot = about.rows
        order = np.lexsort((self._keys(join[slot], self._about_each(b"show", about.values)), slot))
        slot, found = slot[order], about.values[order]
        talk = self._shown(join[slot], found, place[slot])
        shown = np.flatnonzero(np.arange(len(slot)) - about.starts[:-1][slot] < count[slot])
        used = np.zeros(len(slot), np.int64)
        limit = np.minimum(talk.rounds.lengths[shown], self.entry.rounds)
        used[shown] = 1 + self._below(limit, talk.joins[shown], self._about_each(b"rounds of", found[shown]))
        return talk, shown, used

    def _follow_ups(self, talk: _Shown, used: np.ndarray, joins: int) -> np.ndarray:
        """The places of those whose next round is asked after the comparison, in the order in which they are."""
        left = np.flatnonzero(used < talk.rounds.lengths)
        keys = self._keys(talk.joins[left], self._about_each(b"follow", talk.records[left]))
        left = left[np.lexsort((keys, talk.joins[left]))]
        join, available = talk.joins[left], np.bincount(talk.joins[left], minlength=joins)
        limit = np.minimum(available, self.entry.followups)
        count = self._below(limit + 1, np.arange(joins), _always(b"follow-ups"))
        place = np.arange(len(left)) - (np.cumsum(available) - available)[join]
        return left[place < count[join]]

    def _shown(self, joins: np.ndarray, records: np.ndarray, offsets: np.ndarray) -> _Shown:
        """Draw the choices of records that joins show, and with them the order of their rounds."""
        groups, sizes, names = choice_groups(self.corpus, records)
        labels, codes = [name.encode() for name in names.dictionary.to_pylist()], names.indices.to_numpy()
        owners = groups.rows

        def purposes(some: np.ndarray) -> Iterable[bytes]:
            uids = self.corpus.uids_at(records[owners[some]])
            named = map(labels.__getitem__, python_values(codes[some]))
            return (b"choose %b of %b" % pair for pair in zip(named, uids, strict=True))

        choices = Ragged(self._below(sizes, joins[owners], purposes), groups.starts)
        return _Shown(joins, records, offsets, choices, shown_rounds(self.corpus, records, choices))

    def _about_each(self, what: bytes, records: np.ndarray) -> "_Purposes":
        """Purposes that name a record each."""
        return lambda some: (b"%b %b" % (what, uid) for uid in self.corpus.uids_at(records[some]))

    def _below(self, sizes: np.ndarray, joins: np.ndarray, purposes: "_Purposes") -> np.ndarray:
        """Draws of joins, each below its size; a hash is not needed to choose the only one."""
        drawn, some = np.zeros(len(sizes), np.int64), np.flatnonzero(sizes > 1)
        drawn[some] = self.draws.below(sizes[some], *self._drawers(joins, purposes, some))
        return drawn

    def _keys(self, joins: np.ndarray, purposes: "_Purposes") -> np.ndarray:
        return self.draws.keys(*self._drawers(joins, purposes, np.arange(len(joins))))

    def _drawers(
        self, joins: np.ndarray, purposes: "_Purposes", some: np.ndarray
    ) -> tuple[Iterable[bytes], np.ndarray, Iterable[bytes]]:
        """Whose draws they are, in the form that `Draws` takes."""
        uids = map(self._uids.__getitem__, python_values(joins[some]))
        return uids, self._copies[joins[some]], (b"%b %b" % (self.name, purpose) for purpose in purposes(some))


_Purposes = Callable[[np.ndarray], Iterable[bytes]]
"""What draws are for, given by their places: made one by one, because millions of texts fill the memory."""


def _always(purpose: bytes) -> _Purposes:
    return lambda some: repeat(purpose, len(some))


def _single_image_records(corpus: Corpus, talk: Sequence[str], usable: np.ndarray) -> Ragged:
    """For every image of the catalogue the usable records of `talk` that are about it alone."""
    rows = np.concatenate([corpus.rows_of(name) for name in talk])
    rows = rows[usable[rows] & (corpus.images.lengths[rows] == 1)]
    image = corpus.images.values[corpus.images.starts[:-1][rows]]
    counts = np.bincount(image, minlength=len(corpus.catalogue))
    return Ragged.from_lengths(rows[np.argsort(image, kind="stable")], counts)


def _joined(first: Ragged, second: Ragged) -> Ragged:
    """The rows of both, one after the other."""
    lengths = np.concatenate([first.lengths, second.lengths])
    return Ragged.from_lengths(np.concatenate([first.values, second.values]), lengths)


def _of(places: np.ndarray, value: int) -> np.ndarray:
    return np.full(len(places), value)
