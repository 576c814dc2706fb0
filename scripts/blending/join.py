"""The LLaVA-Otter blend: conversations about single images, joined with questions that compare these images.

For every record about several images (`otter_mimicit_cgd`) the join shows, image by image, conversations of `llava` and
`llava_dial` about that image (at least one, except for the last image), then rounds of the record itself, then
follow-up rounds about one image, taken from what its conversations have left and naming the image they mean. No round
is shown twice.

All draws belong to the record about several images, so two joins that share an image do not influence each other.
"""

from dataclasses import dataclass

import numpy as np

from scripts.blending.conversations import Conversations, choice_size
from scripts.blending.corpus import Corpus
from scripts.blending.permutation import order_of
from scripts.blending.ragged import Ragged
from scripts.blending.randomness import Draws
from scripts.blending.selection import NO_CONVERSATION, REPEATS_IMAGE, USABLE
from scripts.sections.blend import JOIN, JOIN_TALK, Entry


@dataclass
class _Piece:
    record: int
    offset: int
    rounds: list[int]
    choices: list[int]
    named: bool = False


class Join:
    """Joins the records of a corpus.

    Args:
        usable: whether each record may be shown.
    """

    def __init__(self, corpus: Corpus, draws: Draws, entry: Entry, usable: np.ndarray):
        self.corpus, self.draws, self.entry = corpus, draws, entry
        # Python lists: the loop below reads single entries, which numpy does slowly.
        self._uids, self._n_rounds = corpus.uids.to_pylist(), corpus.n_rounds.tolist()
        self._n_groups = corpus.group_sizes.lengths.tolist()
        self._about = _single_image_records(corpus, usable)

    def judge(self, rows: np.ndarray) -> np.ndarray:
        """Why the records `rows` cannot be joined, as an index into `selection.REASONS`."""
        images = self.corpus.images.take(rows)
        silent = self._about.lengths[images.values] == 0
        silent[images.starts[1:][images.lengths > 0] - 1] = False
        lacking = np.bincount(images.rows[silent], minlength=len(rows)) > 0
        distinct = np.unique(np.stack([images.rows, images.values]), axis=1)
        repeats = np.bincount(distinct[0], minlength=len(rows)) < images.lengths
        return np.select([repeats, lacking], [REPEATS_IMAGE, NO_CONVERSATION], USABLE)

    def conversations(self, records: np.ndarray, copies: np.ndarray) -> Conversations:
        """One conversation per record and copy; `records` have been judged usable."""
        joined = [self._join(record, copy) for record, copy in zip(records.tolist(), copies.tolist(), strict=True)]
        sizes = np.array([len(pieces) for pieces, _ in joined], np.int64)
        pieces = [piece for conversation, _ in joined for piece in conversation]
        return Conversations(
            sizes=sizes,
            keys=self.draws.keys(self.corpus.uids_at(records), copies.tolist(), f"{JOIN} order"),
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
        uid = self._uids[record]
        images = _row(self.corpus.images, record)
        pieces, left = [], []
        for offset, image in enumerate(images):
            least = 0 if offset == len(images) - 1 else 1
            shown, unshown = self._talk(uid, copy, offset, _row(self._about, image), least)
            pieces += shown
            left += unshown
        required = sum(len(piece.rounds) for piece in pieces) + 1
        pieces.append(self._compare(uid, copy, record))
        if self.entry.followup and left:
            left.sort(key=lambda piece: self._key(uid, copy, "follow", piece.record))
            count = self._below(min(len(left), self.entry.followups) + 1, uid, copy, "follow-ups")
            pieces += left[:count]
        return pieces, required

    def _talk(
        self, uid: str, copy: int, offset: int, candidates: list[int], least: int
    ) -> tuple[list[_Piece], list[_Piece]]:
        """Conversations shown about one image, and a follow-up for each conversation that has a round left."""
        most = min(len(candidates), self.entry.conversations)
        count = least + self._below(most - least + 1, uid, copy, f"conversations on {offset}")
        candidates = sorted(candidates, key=lambda record: self._key(uid, copy, "show", record))
        shown, left = [], []
        for place, record in enumerate(candidates):
            available, used = self._n_rounds[record], 0
            choices = self._choices(uid, copy, record)
            if place < count:
                limit = min(available, self.entry.rounds)
                used = 1 + self._below(limit, uid, copy, f"rounds of {self._uids[record]}")
                shown.append(_Piece(record, offset, list(range(used)), choices))
            if used < available:
                left.append(_Piece(record, offset, [used], choices, named=True))
        return shown, left

    def _compare(self, uid: str, copy: int, record: int) -> _Piece:
        """Rounds about all images, in a drawn order."""
        choices = self._choices(uid, copy, record)
        order = list(range(self._n_rounds[record]))
        for choice, permuted in zip(choices, _row(self.corpus.group_permutes, record), strict=True):
            if permuted:
                order = order_of(choice, len(order))
        count = 1 + self._below(len(order), uid, copy, "comparisons")
        return _Piece(record, 0, order[:count], choices)

    def _choices(self, uid: str, copy: int, record: int) -> list[int]:
        if self._n_groups[record] == 0:
            return []
        start = int(self.corpus.group_sizes.starts[record])
        groups = zip(_row(self.corpus.group_sizes, record), _row(self.corpus.group_permutes, record), strict=True)
        return [
            self._below(
                choice_size(size, permuted),
                uid,
                copy,
                f"choose {self.corpus.group_names[start + group].as_py()} of {self._uids[record]}",
            )
            for group, (size, permuted) in enumerate(groups)
        ]

    def _below(self, size: int, uid: str, copy: int, purpose: str) -> int:
        return self.draws.below(size, uid, copy, f"{JOIN} {purpose}")

    def _key(self, uid: str, copy: int, purpose: str, record: int) -> int:
        return self.draws.key(uid, copy, f"{JOIN} {purpose} {self._uids[record]}")


def _single_image_records(corpus: Corpus, usable: np.ndarray) -> Ragged:
    """For every image of the catalogue the usable records that talk about it alone."""
    rows = np.concatenate([corpus.rows_of(name) for name in JOIN_TALK])
    rows = rows[usable[rows] & (corpus.images.lengths[rows] == 1)]
    image = corpus.images.values[corpus.images.starts[:-1][rows]]
    counts = np.bincount(image, minlength=len(corpus.catalogue))
    return Ragged.from_lengths(rows[np.argsort(image, kind="stable")], counts)


def _row(ragged: Ragged, row: int) -> list:
    return ragged.values[ragged.starts[row] : ragged.starts[row + 1]].tolist()
