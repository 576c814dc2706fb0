"""How many tokens an image becomes, computed from configuration files alone: no weights, no torch, no transformers.

The network itself finds the number by running (modeling.py). Whatever has to know it earlier (the plan, the loader, an
estimate, the derivation of a configuration) uses this module; a test compares the two for every kind of encoder and
every projector.

Every image becomes a square of one size, so its own width and height do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_RESAMPLING = ("perceiver",)
"""Projectors that make `projector_queries` tokens; the others keep the number."""
_EXTRA_TOKENS = {
    "clip_vision_model": 1,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "vit": 1,
    "siglip_vision_model": 0,
    "siglip2_vision_model": 0,
    "visualchat_qwen_vision": 0,
}
"""Class tokens by `model_type`, without registers."""


def square_side(encoder: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> int:
    """Return the side in pixels of the squares that the encoder gets.

    `encoder` and `preprocessor` are the fields of `config.json` and `preprocessor_config.json`; without the latter it
    is the size that the encoder was built for.

    Raises ValueError if neither contains a size, or if the image processor makes rectangles.
    """
    if preprocessor:
        if patches := preprocessor.get("max_num_patches"):
            return int(preprocessor.get("patch_size", 16)) * math.isqrt(patches)
        crop = preprocessor.get("crop_size")
        use_crop = crop is not None and preprocessor.get("do_center_crop", True)
        if (side := _side(crop if use_crop else preprocessor.get("size"))) is not None:
            return side
    if (side := _side(encoder.get("image_size"))) is not None:
        return side
    if "num_patches" in encoder and "patch_size" in encoder:
        return int(encoder["patch_size"]) * math.isqrt(encoder["num_patches"])
    raise ValueError("its configuration names no image size")


def image_tokens(
    encoder: Mapping[str, Any], side: int, projector: str, projector_queries: int, class_token: str
) -> int:
    """Return the number of tokens of an image behind the projector.

    `encoder` holds the fields of the encoder's `config.json`; `side` is that of `square_side`; the others are fields of
    `VisualChatConfig`. All hidden layers of an encoder have as many tokens as its output.

    Raises ValueError for an encoder without patches, and for one whose class tokens are to be kept but not known.
    """
    if projector in _RESAMPLING:
        return projector_queries
    patches = encoder.get("resampler_queries")
    if patches is None:
        if not isinstance(encoder.get("patch_size"), int):
            raise ValueError("its configuration names no patch_size")
        patches = (side // encoder["patch_size"]) ** 2
    if class_token == "drop":  # noqa: S105 - a token of the encoder, not a secret
        return patches
    extra = class_tokens(encoder)
    if extra is None:
        kind = encoder.get("model_type")
        raise ValueError(f"whether encoders of the type {kind!r} have a class token is not known here")
    return patches + extra


def class_tokens(encoder: Mapping[str, Any]) -> int | None:
    """Return how many class and register tokens an encoder has beside its patches; None if its type is not known.

    `encoder` holds the fields of its `config.json`.
    """
    known = _EXTRA_TOKENS.get(str(encoder.get("model_type")))
    return None if known is None else known + int(encoder.get("num_register_tokens") or 0)


def _side(size: Any) -> int | None:
    """The side of a square: a number, or an object as image processors have; None if there is none.

    Raises ValueError for a rectangle.
    """
    if isinstance(size, int | float):
        return int(size)
    if isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, Mapping):
        return None
    if "height" in size and "width" in size:
        if size["height"] != size["width"]:
            raise ValueError(f"it makes images of {size['width']} x {size['height']} pixels, which are no squares")
        return int(size["height"])
    return int(size["shortest_edge"]) if size.get("shortest_edge") else None
