"""Which records may occur, and which of them do: the hold-out, official splits, samples and repeats."""

import numpy as np
import pyarrow.compute as pc

from scripts.blending.corpus import Corpus
from scripts.blending.randomness import Draws
from scripts.sections.blend import Entry

USABLE = 0
REASONS = ("usable", "official_split", "held_out", "partly_held_out", "no_conversation_on_image", "repeats_an_image")
OFFICIAL_SPLIT, HELD_OUT, PARTLY_HELD_OUT, NO_CONVERSATION, REPEATS_IMAGE = range(1, len(REASONS))
NOT_CONCERNED = -1


def judge_training(corpus: Corpus, held_out: np.ndarray, all_splits: bool = False) -> np.ndarray:
    """Why each record may not train, as an index into `REASONS`.

    `held_out`: whether each image of the catalogue is kept for evaluation. A record trains only if none of its images
    is, and only if it is of an official training split, unless `all_splits` asks for every one.
    """
    some, every = corpus.any_image(held_out)
    official = pc.not_equal(corpus.splits, "train").to_numpy(zero_copy_only=False) & (not all_splits)
    return np.select([official, every, some], [OFFICIAL_SPLIT, HELD_OUT, PARTLY_HELD_OUT], USABLE)


def judge_heldout(corpus: Corpus, held_out: np.ndarray, mixed: str, all_splits: bool = False) -> np.ndarray:
    """Which records are evaluated: `USABLE`, a reason, or `NOT_CONCERNED` for those without a held-out image.

    Rows of an official test split are used nowhere, because the held-out loss chooses the best checkpoint; `all_splits`
    treats them like all others.
    """
    some, every = corpus.any_image(held_out)
    test = pc.equal(corpus.splits, "test").to_numpy(zero_copy_only=False) & (not all_splits)
    partly = some & ~every & (mixed == "drop")
    return np.select([test, ~some, partly], [OFFICIAL_SPLIT, NOT_CONCERNED, PARTLY_HELD_OUT], USABLE)


def count_reasons(verdicts: np.ndarray) -> dict[str, int]:
    """Records per reason."""
    counts = np.bincount(verdicts[verdicts > USABLE], minlength=len(REASONS))
    return {reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count}


def draw_records(
    corpus: Corpus, draws: Draws, name: str, entry: Entry, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The records an entry shows and the number of each copy; `rows` are those it may show."""
    wanted = wanted_samples(entry.samples, len(rows))
    if wanted < len(rows):
        keys = draws.keys(corpus.uids_at(rows), np.zeros(len(rows), np.int64).tolist(), f"{name} select")
        rows = rows[np.sort(np.argsort(keys, kind="stable")[:wanted])]
    return np.tile(rows, entry.repeat), np.repeat(np.arange(entry.repeat), len(rows))


def wanted_samples(samples: str | int | float, available: int) -> int:
    """How many of `available` records `samples` asks for; a share of something is at least one."""
    if samples == "all":
        return available
    if isinstance(samples, float):
        return min(available, max(1, round(samples * available)))
    return min(available, samples)
