"""Packs: several conversations in one row of limited tokens and images, so that almost no position is padding.

Conversations are taken in their shuffled order, a window at a time, and inside a window packed by best fit: each goes
into the fullest pack that still has room for its tokens and its images. Those above half a row come first, longest
first, because no two of them fit together; all others keep their shuffled order. Sorting those too would fill at most
2 % more and bias the batches: conversations of one length are mostly of one kind, so that each pack would hold one
kind, and a global batch would be no random mixture.
"""

import numpy as np

from scripts.blending.ragged import Ragged

WINDOW = 1024
"""Conversations that are packed among themselves: enough to fill packs to 99 % where they hold several."""
_WINDOWS_AT_ONCE = 256
_FULL = np.iinfo(np.int32).max


def pack(tokens: np.ndarray, images: np.ndarray, sequence: int, max_images: int) -> Ragged:
    """Pack n conversations, given in their order by their tokens and images (n,), none above the limits.

    Returns the members of every pack, as rising numbers; every conversation is in one pack.
    """
    chosen = np.empty(len(tokens), np.int64)
    step = WINDOW * _WINDOWS_AT_ONCE
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
    lengths, n_images = _windows(tokens, count), _windows(images, count)
    order = np.argsort(np.where(2 * lengths > sequence, -lengths, 0), axis=1, kind="stable")
    lengths, n_images = np.take_along_axis(lengths, order, axis=1), np.take_along_axis(n_images, order, axis=1)

    # An empty pack is one with all of its room, so it is the last that best fit would choose.
    free_tokens = np.full((count, WINDOW), sequence, np.int32)
    free_images = np.full((count, WINDOW), max_images, np.int32)
    window, begun = np.arange(count), 0
    chosen = np.empty((count, WINDOW), np.int64)
    for step in range(WINDOW):
        end = min(begun + 1, WINDOW)
        fits = (free_tokens[:, :end] >= lengths[:, step, None]) & (free_images[:, :end] >= n_images[:, step, None])
        best = np.where(fits, free_tokens[:, :end], _FULL).argmin(axis=1)
        free_tokens[window, best] -= lengths[:, step]
        free_images[window, best] -= n_images[:, step]
        chosen[window, order[:, step]] = best
        begun = max(begun, int(best.max()) + 1)
    return (chosen + window[:, None] * WINDOW).ravel()[: len(tokens)]


def _windows(values: np.ndarray, count: int) -> np.ndarray:
    """Values (n,) as `count` windows, filled up with zeros: (count, WINDOW) int32."""
    padded = np.zeros(count * WINDOW, np.int32)
    padded[: len(values)] = values
    return padded.reshape(count, WINDOW)
