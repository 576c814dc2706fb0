"""The states of one image: its keys and values in every layer of the decoder, independent of position and text.

Where image rows attend to themselves alone ('mmca', 'dattn'), these depend on nothing but the image, once the rotation
of the keys is left out. So they are computed once (`image_cache.py`) and put at any position of any conversation
(`conversation_cache.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageStates:
    """Keys (as at position 0) and values of an image of n tokens: one tensor (G, n, D) for each layer of the decoder.

    G is the number of key-value heads, D their width.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        """The number of tokens of the image, n."""
        return self.keys[0].shape[1]

    @property
    def nbytes(self) -> int:
        """The memory of keys and values, in bytes."""
        return sum(x.nbytes for x in (*self.keys, *self.values))
