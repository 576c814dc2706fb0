"""Joins on images: conversations about single images, joined with one about all of them.

For every record of one dataset (`over`, in the paper pairs of `otter_mimicit_cgd`) the join shows, image by image,
conversations of other datasets (`talk`, in the paper `llava` and `llava_dial`) about that image (at least one, except
for the last of several images), then rounds of the record itself, then follow-up rounds about one image, taken from
what its conversations have left and naming the image they mean. No round is shown twice. It is a join n:m: a record of
`talk` is shown with every record of `over` that shows its image, and a record of `over` with many of `talk`.

All draws belong to the record of `over`, so two joins that share an image do not influence each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scripts.blending.conversations import Conversations, choice_sizes
from scripts.blending.corpus import Corpus
from scripts.blending.permutation import order_of
from scripts.blending.ragged import Ragged
from scripts.blending.randomness import Draws
from scripts.blending.selection import NO_CONVERSATION, REPEATS_IMAGE, USABLE
from scripts.sections.blend import Entry


@dataclass
class _Piece:
    record: int
    offset: int
    rounds: list[int]
    choices: list[int]
    named: bool = False


class Joiner:
    """Joins the records of a corpus.

    Args:
        name: of the blend's entry.
        talk: datasets of conversations about single images.
        usable: whether each record may be shown.
    """

    def __init__(self, corpus: Corpus, draws: Draws, name: str, entry: Entry, talk: Sequence[str], usable: np.ndarray):
        self.corpus, self.draws, self.name, self.entry = corpus, draws, name, entry
        # Python lists: the loop below reads single entries, which numpy does slowly.
        self._uids, self._n_rounds = corpus.uids.to_pylist(), corpus.n_rounds.tolist()
        self._groups, self._group_names = corpus.group_sizes.starts.tolist(), corpus.group_names.to_pylist()
        self._choices = choice_sizes(corpus.group_sizes.values, corpus.group_permutes.values).tolist()
        self._permutes = corpus.group_permutes.values.tolist()
        self._images, self._image_starts = corpus.images.values.tolist(), corpus.images.starts.tolist()
        self._about = _single_image_records(corpus, talk, usable)
        self._talk, self._talk_starts = self._about.values.tolist(), self._about.starts.tolist()

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
        joined = [self._join(record, copy) for record, copy in zip(records.tolist(), copies.tolist(), strict=True)]
        sizes = np.array([len(pieces) for pieces, _ in joined], np.int64)
        pieces = [piece for conversation, _ in joined for piece in conversation]
        return Conversations(
            sizes=sizes,
            keys=self.draws.keys(self.corpus.uids_at(records), copies, f"{self.name} order"),
            required=np.array([required for _, required in joined], np.int64),
            records=np.array([piece.record for piece in pieces], np.int64),
            copies=np.repeat(copies, sizes),
            offsets=np.array([piece.offset for piece in pieces], np.int64),
            named=np.array([piece.named for piece in pieces], bool),
            choices=Ragged.from_lists(piece.choices for piece in pieces),
            rounds=Ragged.from_lists(piece.rounds for piece in pieces),
        )

    def _join(self, record: int, copy: int) -> tuple[list[_Piece], int]:
        """The pieces of one conversation, and the rounds up to the first that is about all images."""
        uid = self._uids[record].encode()
        images = self._images[self._image_starts[record] : self._image_starts[record + 1]]
        pieces, left = [], []
        for offset, image in enumerate(images):
            least = 0 if offset == len(images) - 1 > 0 else 1
            shown, unshown = self._talk_about(uid, copy, offset, image, least)
            pieces += shown
            left += unshown
        required = sum(len(piece.rounds) for piece in pieces) + 1
        pieces.append(self._compare(uid, copy, record))
        if self.entry.followup and left:
            left.sort(key=lambda piece: self._key(uid, copy, "follow", piece.record))
            count = self._below(min(len(left), self.entry.followups) + 1, uid, copy, "follow-ups")
            pieces += left[:count]
        return pieces, required

    def _talk_about(
        self, uid: bytes, copy: int, offset: int, image: int, least: int
    ) -> tuple[list[_Piece], list[_Piece]]:
        """Conversations shown about one image, and a follow-up for each conversation that has a round left."""
        candidates = self._talk[self._talk_starts[image] : self._talk_starts[image + 1]]
        most = min(len(candidates), self.entry.conversations)
        count = least + self._below(most - least + 1, uid, copy, f"conversations on {offset}")
        candidates = sorted(candidates, key=lambda record: self._key(uid, copy, "show", record))
        shown, left = [], []
        for place, record in enumerate(candidates):
            order, choices = self._ordered(uid, copy, record)
            used = 0
            if place < count:
                limit = min(len(order), self.entry.rounds)
                used = 1 + self._below(limit, uid, copy, f"rounds of {self._uids[record]}")
                shown.append(_Piece(record, offset, order[:used], choices))
            if used < len(order):
                left.append(_Piece(record, offset, [order[used]], choices, named=True))
        return shown, left

    def _compare(self, uid: bytes, copy: int, record: int) -> _Piece:
        """Rounds about all images, in a drawn order."""
        order, choices = self._ordered(uid, copy, record)
        count = 1 + self._below(len(order), uid, copy, "comparisons")
        return _Piece(record, 0, order[:count], choices)

    def _ordered(self, uid: bytes, copy: int, record: int) -> tuple[list[int], list[int]]:
        """The rounds of a record in the order in which they are shown, and its choices."""
        order, choices = list(range(self._n_rounds[record])), []
        for group in range(self._groups[record], self._groups[record + 1]):
            purpose = f"choose {self._group_names[group]} of {self._uids[record]}"
            choices.append(self._below(self._choices[group], uid, copy, purpose))
            if self._permutes[group]:
                order = order_of(choices[-1], len(order))
        return order, choices

    def _below(self, size: int, uid: bytes, copy: int, purpose: str) -> int:
        # A hash is not needed to choose the only one.
        return self.draws.below(size, uid, copy, f"{self.name} {purpose}") if size > 1 else 0

    def _key(self, uid: bytes, copy: int, purpose: str, record: int) -> int:
        return self.draws.key(uid, copy, f"{self.name} {purpose} {self._uids[record]}")


def _single_image_records(corpus: Corpus, talk: Sequence[str], usable: np.ndarray) -> Ragged:
    """For every image of the catalogue the usable records of `talk` that are about it alone."""
    rows = np.concatenate([corpus.rows_of(name) for name in talk])
    rows = rows[usable[rows] & (corpus.images.lengths[rows] == 1)]
    image = corpus.images.values[corpus.images.starts[:-1][rows]]
    counts = np.bincount(image, minlength=len(corpus.catalogue))
    return Ragged.from_lengths(rows[np.argsort(image, kind="stable")], counts)
