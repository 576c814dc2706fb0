"""Images computed once and looked up by their pixels, over rounds, conversations and users.

With 'mmca' and 'dattn' the cache holds the image's states in the decoder (`image_states.py`). With 'causal' attention
those depend on what precedes the image, so it holds the features of the vision tower instead.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .image_states import ImageStates
from .modeling import VisualChatForConditionalGeneration

_MAX_BYTES = 1 << 30


class ImageCache:
    """Keeps the states or features of images, by their pixels, and drops the least recently used.

    Valid as long as the model's weights stay the same. Several conversations with one model may share it.
    """

    def __init__(self, model: VisualChatForConditionalGeneration, max_bytes: int = _MAX_BYTES) -> None:
        """`max_bytes` is the memory that the cache may use on the model's device; one image always stays."""
        self.model, self.max_bytes, self.nbytes, self.misses = model, max_bytes, 0, 0
        self._kept: OrderedDict[bytes, ImageStates | Tensor] = OrderedDict()

    def model_inputs(self, images: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return the argument of `forward` and `generate` that stands for `images`, each uint8 (3, height, width).

        That is `image_states`, or with 'causal' attention `image_features`; nothing without an image.
        """
        if not images:
            return {}
        hashes = [hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest() for image in images]
        cached = {key: self._kept[key] for key in hashes if key in self._kept}
        missing = {key: image for key, image in zip(hashes, images, strict=True) if key not in cached}
        if missing:
            self.misses += len(missing)
            pixels = torch.from_numpy(np.stack(list(missing.values()))).to(self.model.device)
            cached.update(zip(missing, self._compute(pixels), strict=True))
        for key in hashes:
            self._keep(key, cached[key])
        results = [cached[key] for key in hashes]
        if self.model.supports_image_states:
            return {"image_states": results}
        return {"image_features": torch.stack([features for features in results if isinstance(features, Tensor)])}

    def clear(self) -> None:
        """Drop all images, for instance because the model was trained further."""
        self._kept.clear()
        self.nbytes = 0

    def _compute(self, pixels: Tensor) -> Sequence[ImageStates | Tensor]:
        with torch.no_grad():
            if self.model.supports_image_states:
                return self.model.compute_image_states(pixels)
            # Copies: a view of one image would keep the whole batch in memory.
            return [features.clone() for features in self.model.vision_tower(pixels)]

    def _keep(self, key: bytes, states: ImageStates | Tensor) -> None:
        if key not in self._kept:
            self._kept[key] = states
            self.nbytes += states.nbytes
        self._kept.move_to_end(key)
        while self.nbytes > self.max_bytes and len(self._kept) > 1:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes
