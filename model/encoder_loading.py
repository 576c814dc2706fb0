"""Loading a vision encoder from its folder, strictly: as a part of a model, or alone as the tower of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from .configuration import VisualChatConfig
from .processing import image_side, load_image_processor
from .vision import VisionTower


def load_vision_tower(folder: Path, dtype: torch.dtype, **options: Any) -> tuple[VisionTower, Any]:
    """Load a vision encoder alone, as the tower that a joined model would have, and its image processor.

    `options` are the fields of `VisualChatConfig` that select layer and tokens.

    Raises ValueError for a folder that lacks weights, or whose image processor does not make squares.
    """
    encoder = load_strictly(AutoModel, folder, config=encoder_config(folder), dtype=dtype)
    images = load_image_processor(folder)
    return VisionTower(VisualChatConfig(**vision_options(encoder, images), **options), encoder).eval(), images


def encoder_config(folder: Path) -> Any:
    """The configuration of the encoder in a folder, which may hold a model of images and text."""
    config = AutoConfig.from_pretrained(folder)
    return getattr(config, "vision_config", config)


def vision_options(encoder: PreTrainedModel, images: Any) -> dict[str, Any]:
    """The fields of `VisualChatConfig` that follow from an encoder and its image processor.

    Raises ValueError if the image processor does not make squares.
    """
    return {
        "vision_config": encoder.config,
        "image_size": image_side(images),
        "image_mean": images.image_mean if images.do_normalize else [0.0] * 3,
        "image_std": images.image_std if images.do_normalize else [1.0] * 3,
        # Without it `transformers` would set the attention of both parts to None.
        "attn_implementation": {"vision_config": encoder.config._attn_implementation},
    }


def check_loading_info(folder: str | Path, info: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raise ValueError if the loading information of `folder` lists weights under one of `keys`."""
    for key in keys:
        if info[key]:
            names = ", ".join(sorted(map(str, info[key]))[:5])
            raise ValueError(f"{folder}: the weights do not fit the configuration, {key.replace('_', ' ')}: {names}")


def load_strictly(auto_class: Any, folder: Path, **options: Any) -> PreTrainedModel:
    """Load a folder; ValueError if it lacks a weight, which `transformers` would initialise at random."""
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    check_loading_info(folder, info, ("missing_keys", "mismatched_keys"))
    return model
