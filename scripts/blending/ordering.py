"""The order of an epoch: a shuffle by hash, datasets that start late, and global batches sorted by cost."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from scripts.common.errors import UserError


def shuffle(keys: np.ndarray, starts: np.ndarray, global_batch: int, names: Sequence[str]) -> np.ndarray:
    """Order conversations by their keys, those with a start above zero only after that part of the epoch.

    A dataset that starts late has its keys squeezed into what is left of the range of keys at its moment, so that it is
    spread evenly over the rest of the epoch, and all other conversations keep their relative order. Moments are rounded
    up to whole global batches, inside which order has no meaning.

    Args:
        keys: (n,) uint64.
        starts: (n,) moments as shares of the epoch in [0, 1).
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
                f"{name} starts at {moment:g} of the epoch, after {before} conversations, but the datasets that come "
                f"before it have only {early.sum()}: let it start earlier, or give them more samples"
            )
        reached = np.partition(times[early], before - 1)[before - 1]
        times[late] = reached + (1 - reached) * times[late]
    return np.lexsort((starts, times))


def sort_batches(order: np.ndarray, costs: np.ndarray, global_batch: int) -> np.ndarray:
    """Sort every global batch by falling cost, so that ranks which deal it out in turn get equal work.

    `costs` (n,) belong to the conversations that `order` names; equal costs keep their order.
    """
    return order[np.lexsort((-costs[order], np.arange(len(order)) // global_batch))]
