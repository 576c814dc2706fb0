"""The operations that training counts for an epoch."""

from model.attention_plan import SWITCHES
from model.modeling import VisualChatForConditionalGeneration
from scripts.estimation.epoch_size import EpochTotals
from scripts.training.flops import Flops


def operations(model: VisualChatForConditionalGeneration, epoch: EpochTotals, features: bool) -> float:
    """Operations of one epoch; what is computed twice to save memory does not count.

    With `features` the encoder does not count either: its output comes from the feature store.
    """
    text_tokens = epoch.tokens - epoch.images * model.config.image_tokens
    causal = SWITCHES[model.config.attention]["image_rows"] == "causal"
    # A token attends to half of its conversation on average.
    pairs = (epoch.tokens if causal else text_tokens) * epoch.tokens / epoch.conversations / 2
    return Flops(model, features).count(epoch.tokens, epoch.labels, epoch.images, pairs)
