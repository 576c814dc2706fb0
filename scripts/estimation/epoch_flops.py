"""The size of an epoch, and the operations that training counts for it."""

from dataclasses import dataclass
from pathlib import Path

from model.attention_plan import SWITCHES
from model.modeling import VisualChatForConditionalGeneration
from scripts.common.files import read_json
from scripts.config.blend import BlendConfig
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
    """One epoch of a blend: from the plan's manifest in `folder`, or else a guess from the published numbers."""
    manifest = folder / "epoch-000.json"
    if manifest.is_file():
        plan = read_json(manifest)
        images = sum(entry.get("images", 0) for entry in plan["datasets"].values())
        return EpochTotals(plan["conversations"], plan["tokens"], plan["labels"], images, True)
    conversations = images = 0.0
    for name, entry in blend.datasets.items():
        published = _CONVERSATIONS.get(name, 10_000)
        samples = entry.samples
        if samples == "all":
            samples = published
        elif isinstance(samples, float):
            samples = published * samples
        conversations += samples * entry.repeat
        images += samples * entry.repeat * _IMAGES.get(name, _USUAL_IMAGES)
    tokens = conversations * _TEXT_TOKENS + images * image_tokens
    return EpochTotals(conversations, tokens, conversations * _LABEL_TOKENS, images, False)


def operations(model: VisualChatForConditionalGeneration, epoch: EpochTotals, features: bool) -> float:
    """Operations of one epoch; what is computed twice to save memory does not count.

    With `features` the encoder does not count either: its output comes from the feature store.
    """
    text_tokens = epoch.tokens - epoch.images * model.config.image_tokens
    causal = SWITCHES[model.config.attention]["image_rows"] == "causal"
    # A token attends to half of its conversation on average.
    pairs = (epoch.tokens if causal else text_tokens) * epoch.tokens / epoch.conversations / 2
    return Flops(model, features).count(epoch.tokens, epoch.labels, epoch.images, pairs)
