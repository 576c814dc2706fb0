"""The size of an epoch, and the operations that training counts for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.attention_plan import SWITCHES
from model.modeling import VisualChatForConditionalGeneration
from scripts.common.files import read_json
from scripts.config.blend import BlendConfig, BlendDatasetConfig
from scripts.training.flops import Flops

# Conversations of the published datasets after concatenation: table 1 of the paper (arXiv 2309.14327) for its nine; for
# the others, rows of the published training files.
_CONVERSATIONS = {
    "llava": 49_924,
    "llava_dial": 37_818,
    "otter_mimicit_cgd": 70_940,
    "otter_mimicit_sd": 8_006,
    "otter_mimicit_sn": 487,
    "otter_mimicit_tvc": 2,
    "otter_mimicit_vst": 115,
    "llava_otter_blend": 48_869,
    "sparkles_dialogue": 6_520,
    "aokvqa": 17_056,
    "coco_caption": 113_287,
    "minigpt4": 3_439,
    "ocr_vqa": 165_746,
}
_UNKNOWN = 10_000
"""Conversations of a dataset of which nothing is known, such as your own before it is converted."""
_TEXT_TOKENS, _LABEL_TOKENS = 350, 130
_IMAGES = {"llava": 2.0, "llava_dial": 1.5, "aokvqa": 1.0, "coco_caption": 1.0, "minigpt4": 1.0, "ocr_vqa": 1.0}
_USUAL_IMAGES = 2.2


@dataclass(frozen=True)
class EpochTotals:
    """One epoch: conversations, tokens, labels and images. `planned`: counted in the plan, not guessed."""

    conversations: float
    tokens: float
    labels: float
    images: float
    planned: bool


def epoch_totals(blend: BlendConfig, folder: Path, image_tokens: int) -> EpochTotals:
    """One epoch of a blend: from the plan's manifest in `folder`, or else a guess from the published numbers.

    A plan that was made with other settings of the blend does not count.
    """
    manifest = folder / "epoch-000.json"
    plan = read_json(manifest) if manifest.is_file() else None
    if plan and _is_of(plan, blend):
        images = sum(entry.get("images", 0) for entry in plan["datasets"].values())
        return EpochTotals(plan["conversations"], plan["tokens"], plan["labels"], images, True)
    conversations = images = 0.0
    for name, entry in blend.datasets.items():
        samples = _guessed(name, entry, blend.epoch_size)
        conversations += samples
        images += samples * _IMAGES.get(name, _USUAL_IMAGES)
    tokens = conversations * _TEXT_TOKENS + images * image_tokens
    return EpochTotals(conversations, tokens, conversations * _LABEL_TOKENS, images, False)


def _is_of(plan: Mapping[str, Any], blend: BlendConfig) -> bool:
    """Whether a plan was made with these settings of the blend."""
    keys = ("seed", "sequence", "max_images", "global_batch", "packing", "epoch_size")
    asked = {name: account["asked"] for name, account in plan["datasets"].items()}
    entries = {
        name: entry.model_dump(mode="json", include=set(asked.get(name, ()))) for name, entry in blend.datasets.items()
    }
    return asked == entries and all(plan[key] == getattr(blend, key) for key in keys)


def _guessed(name: str, entry: BlendDatasetConfig, epoch_size: int | None) -> float:
    """The conversations of a dataset in an epoch, by its settings and the published numbers.

    Samples are counted before concatenation, which joins (1 + `concat`) / 2 of them on average.
    """
    joined = (1 + entry.concat) / 2
    if entry.proportion is not None and epoch_size is not None:
        return entry.proportion * epoch_size / joined
    published = _CONVERSATIONS.get(name)
    if entry.samples == "all" or isinstance(entry.samples, float):
        share = 1.0 if entry.samples == "all" else entry.samples
        return (published or _UNKNOWN) * share * entry.repeat
    asked = entry.samples / joined
    return (asked if published is None else min(asked, published)) * entry.repeat


def operations(model: VisualChatForConditionalGeneration, epoch: EpochTotals, features: bool) -> float:
    """Operations of one epoch; what is computed twice to save memory does not count.

    With `features` the encoder does not count either: its output comes from the feature store.
    """
    text_tokens = epoch.tokens - epoch.images * model.config.image_tokens
    causal = SWITCHES[model.config.attention]["image_rows"] == "causal"
    # A token attends to half of its conversation on average.
    pairs = (epoch.tokens if causal else text_tokens) * epoch.tokens / epoch.conversations / 2
    return Flops(model, features).count(epoch.tokens, epoch.labels, epoch.images, pairs)
