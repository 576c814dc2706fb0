"""The order of an epoch: units, a shuffle by hash, datasets that start late, and global batches sorted by cost.

A unit is what a rank computes as one row of a batch: a conversation, or a pack of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from scripts.blending.packing import pack
from scripts.blending.ragged import Ragged, concatenate_ragged
from scripts.blending.randomness import Draws
from scripts.common.errors import UserError
from scripts.config.blend import BlendConfig


@dataclass(frozen=True)
class ConversationStats:
    """What decides the order of n conversations, all columns (n,).

    `keys`: uint64 to shuffle by. `starts`: moments as shares of the epoch in [0, 1). `tokens`, `images`: how many it
    has. `owners`: index of the blend's entry that it belongs to.
    """

    keys: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray
    images: np.ndarray
    owners: np.ndarray


def arrange(conversations: ConversationStats, settings: BlendConfig, draws: Draws, entries: Sequence[str]) -> Ragged:
    """The units of an epoch in their order, each as the numbers of its conversations.

    Raises:
        UserError: see `shuffle`.
    """
    if settings.packing:
        units = _packs(conversations, settings)
        # A new key: that of a member would bring the packs of a window back together.
        members = [b"%d" % key for key in conversations.keys[units.values[units.starts[:-1]]].tolist()]
        keys = draws.keys(members, np.zeros(len(members), np.int64), "pack order")
    else:
        keys = conversations.keys
        units = Ragged.from_lengths(np.arange(len(keys)), np.ones(len(keys), np.int64))
    first = units.values[units.starts[:-1]]
    costs = np.bincount(units.rows, conversations.tokens[units.values], minlength=len(units)).astype(np.int64)
    names = np.array(entries, object)[conversations.owners[first]]
    order = shuffle(keys, conversations.starts[first], settings.global_batch, names)
    return units.take(sort_batches(order, costs, settings.global_batch))


def _packs(conversations: ConversationStats, settings: BlendConfig) -> Ragged:
    """Packs of conversations that start at the same moment."""
    parts = []
    for moment in np.unique(conversations.starts):
        mine = np.flatnonzero(conversations.starts == moment)
        mine = mine[np.argsort(conversations.keys[mine], kind="stable")]
        tokens, images = conversations.tokens[mine], conversations.images[mine]
        packs = pack(tokens, images, settings.sequence, settings.max_images_per_pack)
        parts.append(Ragged(mine[packs.values], packs.starts))
    return concatenate_ragged(parts) if parts else Ragged.from_lists([])


def shuffle(keys: np.ndarray, starts: np.ndarray, global_batch: int, names: Sequence[str]) -> np.ndarray:
    """Order units by their keys, those with a start above zero only after that part of the epoch.

    A dataset that starts late has its keys squeezed into what is left of the range of keys at its moment, so that it is
    spread evenly over the rest of the epoch, and all other units keep their relative order. Moments are rounded
    up to whole global batches, inside which order has no meaning.

    Args:
        keys: (n,) uint64.
        starts: (n,) moments as shares of the epoch in [0, 1).
        global_batch: units of a step; moments are rounded up to a multiple of it.
        names: (n,) names of the datasets, for the message.

    Raises:
        UserError: what may come before a moment does not fill the epoch up to it.
    """
    times = keys / 2.0**64
    for moment in np.unique(starts[starts > 0]):
        late, early = starts == moment, starts < moment
        # Rounded first: 0.55 * 100 is a little more than 55.
        before = ceil(round(moment * len(keys) / global_batch, 9)) * global_batch
        if before > early.sum():
            name = names[int(np.flatnonzero(late)[0])]
            raise UserError(
                f"{name} starts at {moment:g} of the epoch, after {before} conversations or packs, but the datasets "
                f"that come before it have only {early.sum()}: let it start earlier, or give them more samples"
            )
        reached = np.partition(times[early], before - 1)[before - 1]
        times[late] = reached + (1 - reached) * times[late]
    return np.lexsort((starts, times))


def sort_batches(order: np.ndarray, costs: np.ndarray, global_batch: int) -> np.ndarray:
    """Sort every global batch by falling cost, so that ranks which take its units in turn get equal work.

    `costs` (n,) belong to the units that `order` names; equal costs keep their order.
    """
    return order[np.lexsort((-costs[order], np.arange(len(order)) // global_batch))]
