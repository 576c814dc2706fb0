"""Packs: conversations put together into rows of limited tokens and images, so that almost no place is padding.

Conversations are taken in their shuffled order, a window at a time, and inside a window packed by best fit: each goes
into the fullest pack that still has room for its tokens and its images. Those above half a row come first, longest
first, because no two of them fit together; all others keep their shuffled order. Sorting those too would fill at most
2 % more and do harm: conversations of one length are mostly of one kind, so that packs would hold one kind each, and a
global batch no random mixture.
"""

import numpy as np

from scripts.blending.ragged import Ragged

WINDOW = 1024
"""Conversations that are packed among themselves: enough to fill packs to 99 % where they hold several."""
_AT_ONCE = 256
_FULL = np.iinfo(np.int32).max


def pack(tokens: np.ndarray, images: np.ndarray, sequence: int, max_images: int) -> Ragged:
    """Pack n conversations, given in their order by their tokens and images (n,), none above the limits.

    Returns the members of every pack, by number and rising; every conversation is in one pack.
    """
    chosen = np.empty(len(tokens), np.int64)
    step = WINDOW * _AT_ONCE
    for start in range(0, len(tokens), step):
        part = slice(start, start + step)
        chosen[part] = start + _pack_windows(tokens[part], images[part], sequence, max_images)
    members = np.argsort(chosen, kind="stable")
    lengths = np.bincount(chosen, minlength=1)
    return Ragged.from_lengths(members, lengths[lengths > 0])


def _pack_windows(tokens: np.ndarray, images: np.ndarray, sequence: int, max_images: int) -> np.ndarray:
    """The pack of each conversation of some windows, (n,): a number below `WINDOW` times the number of windows.

    All windows are packed side by side: step i places the i-th conversation of each of them.
    """
    count = -(-len(tokens) // WINDOW)
    places = np.zeros((2, count * WINDOW), np.int32)
    places[0, : len(tokens)], places[1, : len(images)] = tokens, images
    lengths, shown = places.reshape(2, count, WINDOW)
    order = np.argsort(np.where(2 * lengths > sequence, -lengths, 0), axis=1, kind="stable")
    lengths, shown = (np.take_along_axis(values, order, axis=1) for values in (lengths, shown))

    # A pack that nobody has begun is one with all of its room, so it is the last that best fit would choose.
    room, spaces = np.full((count, WINDOW), sequence, np.int32), np.full((count, WINDOW), max_images, np.int32)
    window, begun = np.arange(count), 0
    chosen = np.empty((count, WINDOW), np.int64)
    for place in range(WINDOW):
        length, number = lengths[:, place], shown[:, place]
        end = min(begun + 1, WINDOW)
        fits = (room[:, :end] >= length[:, None]) & (spaces[:, :end] >= number[:, None])
        best = np.where(fits, room[:, :end], _FULL).argmin(axis=1)
        room[window, best] -= length
        spaces[window, best] -= number
        chosen[window, order[:, place]] = best
        begun = max(begun, int(best.max()) + 1)
    return (chosen + window[:, None] * WINDOW).ravel()[: len(tokens)]
