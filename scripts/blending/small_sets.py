"""Small sets of own data hold something out too.

A share of few images, or of few rows, is often nothing; such a set would be trained on without ever being measured. Of
a custom dataset with at least `SMALLEST` conversations, none of which is held out, one is: that with the smallest hash
of its uid. All its images are held out with it, so that no other conversation trains on them. The choice depends on
nothing but the dataset's own records and the hold-out; a larger share replaces it.
"""

import hashlib
from collections.abc import Iterable

from scripts.blending.corpus import Corpus
from scripts.blending.selection import USABLE, HeldOut, judge_heldout, judge_training

SMALLEST = 10
_TRIED = 20
"""How many conversations are tried, where the images of the first ones occur in most of the others."""


def hold_out_of_each(corpus: Corpus, held_out: HeldOut, own: Iterable[str], mixed: str) -> HeldOut:
    """`held_out`, and one conversation more of each of the datasets `own` that would hold out none.

    At least half of the conversations of a dataset remain for training; where that is not possible, none is held out.

    Args:
        corpus: all records of a blend.
        held_out: what is held out by shares and splits.
        own: custom datasets of the blend.
        mixed: `holdout.mixed`.
    """
    for dataset in own:
        rows = corpus.rows_of(dataset)
        if len(rows) < SMALLEST or (judge_heldout(corpus, held_out, mixed)[rows] == USABLE).any():
            continue
        trained = rows[judge_training(corpus, held_out)[rows] == USABLE]
        hashes = [hashlib.blake2b(uid, digest_size=8).digest() for uid in corpus.uids_at(trained)]
        for index in sorted(range(len(trained)), key=hashes.__getitem__)[:_TRIED]:
            more = _with_record(corpus, held_out, int(trained[index]))
            if 2 * (judge_training(corpus, more)[rows] == USABLE).sum() >= len(rows):
                held_out = more
                break
    return held_out


def _with_record(corpus: Corpus, held_out: HeldOut, row: int) -> HeldOut:
    """`held_out`, the record `row` and its images."""
    images, records = held_out.images.copy(), held_out.records.copy()
    records[row] = True
    images[corpus.images.values[corpus.images.starts[row] : corpus.images.starts[row + 1]]] = True
    return HeldOut(images, records)
