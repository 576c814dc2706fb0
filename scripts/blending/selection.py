"""Which records may occur, and which of them do: the hold-out, official splits, samples and repeats."""

from typing import Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc

from scripts.blending.corpus import Corpus
from scripts.blending.randomness import Draws
from scripts.common.records import HELD_OUT as HELD_OUT_SPLIT
from scripts.config.blend import BlendDatasetConfig

USABLE = 0
REASONS = (
    "usable",
    "official_split",
    "held_out",
    "partly_held_out",
    "no_conversation_on_image",
    "repeats_an_image",
    "kept_for_evaluation",
)
OFFICIAL_SPLIT, HELD_OUT, PARTLY_HELD_OUT, NO_CONVERSATION, REPEATS_IMAGE, KEPT_ROW = range(1, len(REASONS))
NOT_HELD_OUT = -1


class HeldOut(NamedTuple):
    """What is kept for evaluation: `images` of the catalogue, and `records` whatever their images; both bool."""

    images: np.ndarray
    records: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus, images: np.ndarray) -> "HeldOut":
        """The images of the hold-out, and the rows of own data with the split "heldout"."""
        return cls(images, pc.equal(corpus.splits, HELD_OUT_SPLIT).to_numpy(zero_copy_only=False))


class DrawnRecords(NamedTuple):
    """The records that an entry shows, rows of the corpus (n,), and the number of each copy (n,)."""

    records: np.ndarray
    copies: np.ndarray


def judge_training(corpus: Corpus, held_out: HeldOut, all_splits: bool = False) -> np.ndarray:
    """Whether each record may be trained on, or why not, as an index into `REASONS`, (records,).

    A record may be trained on only if neither itself nor any of its images is held out, and only if it is of an
    official training split, unless `all_splits` allows every split.
    """
    held = corpus.images_marked(held_out.images)
    official = pc.not_equal(corpus.splits, "train").to_numpy(zero_copy_only=False) & (not all_splits)
    conditions = [held_out.records, official, held.all, held.some]
    return np.select(conditions, [KEPT_ROW, OFFICIAL_SPLIT, HELD_OUT, PARTLY_HELD_OUT], USABLE)


def judge_heldout(corpus: Corpus, held_out: HeldOut, mixed: str, all_splits: bool = False) -> np.ndarray:
    """Which records are evaluated: `USABLE`, a reason, or `NOT_HELD_OUT` where nothing is held out, (records,).

    Records that are held out themselves are evaluated whatever their images. Rows of an official test split are used
    nowhere, because the held-out loss chooses the best checkpoint; `all_splits` treats them like all others.
    """
    held = corpus.images_marked(held_out.images)
    test = pc.equal(corpus.splits, "test").to_numpy(zero_copy_only=False) & (not all_splits)
    partly = held.some & ~held.all & (mixed == "drop")
    conditions = [held_out.records, test, ~held.some, partly]
    return np.select(conditions, [USABLE, OFFICIAL_SPLIT, NOT_HELD_OUT, PARTLY_HELD_OUT], USABLE)


def count_reasons(verdicts: np.ndarray) -> dict[str, int]:
    """Records per reason."""
    counts = np.bincount(verdicts[verdicts > USABLE], minlength=len(REASONS))
    return {reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count}


def draw_records(
    corpus: Corpus, draws: Draws, name: str, entry: BlendDatasetConfig, rows: np.ndarray, epoch_size: int | None
) -> DrawnRecords:
    """Draw the records that an entry shows from `rows`, those that it may show."""
    if len(rows) == 0:
        return DrawnRecords(rows, rows)
    if entry.proportion is None:
        part, copies = requested_samples(entry.samples, len(rows)), entry.repeat
        chosen = _chosen(corpus, draws, name, rows, part)
        return DrawnRecords(np.tile(chosen, copies), np.repeat(np.arange(copies), part))
    copies, part = divmod(requested_count(entry, len(rows), epoch_size), len(rows))
    # The last copy is of a part of the records, the first ones of all.
    chosen = _chosen(corpus, draws, name, rows, part)
    numbers = np.concatenate([np.repeat(np.arange(copies), len(rows)), np.full(part, copies)])
    return DrawnRecords(np.concatenate([np.tile(rows, copies), chosen]), numbers)


def requested_count(entry: BlendDatasetConfig, available: int, epoch_size: int | None) -> int:
    """How many conversations, before concatenation, an entry asks for where it may show `available` records."""
    if entry.proportion is not None:
        if epoch_size is None:
            raise ValueError("a proportion needs the blend's epoch_size, which its configuration checks")
        return max(1, round(entry.proportion * epoch_size))
    samples = entry.samples if isinstance(entry.samples, int) else requested_samples(entry.samples, available)
    return samples * entry.repeat


def requested_samples(samples: Literal["all"] | int | float, available: int) -> int:
    """How many of `available` records `samples` asks for; a share of something is at least one."""
    if samples == "all":
        return available
    if isinstance(samples, float):
        return min(available, max(1, round(samples * available)))
    return min(available, samples)


def _chosen(corpus: Corpus, draws: Draws, name: str, rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of the records `rows`, chosen by hash, in their own order."""
    if count == len(rows):
        return rows
    keys = draws.keys(corpus.uids_at(rows), np.zeros(len(rows), np.int64), f"{name} select")
    return rows[np.sort(np.argsort(keys, kind="stable")[:count])]
