"""Whether images disturb a decoder before the first step: its loss on the same answers with and without them.

An attention that a pretrained decoder was not made for, such as the two separate softmaxes of `mmca`, may change its
hidden states so much that it cannot write any more. A decoder that is trained learns to; a frozen one does not. The
loss shows it before the first step: a new projector says nothing about an image, so answers are at best as likely as
without images, but with an attention that keeps the decoder's behaviour they are hardly less likely.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from scripts.config.run import RunConfig
from scripts.training.dataset import MicroBatch, MicroBatchDataset
from scripts.training.engine import TrainingEngine

CONVERSATIONS = 32
"""Conversations with images that are measured, of the first global batch: on all ranks together."""
BOUND = 1.5
"""A loss with images that is so many nats per token above the one without is far above it. Measured with
SmolLM2-135M-Instruct and a new projector: `dattn` and `causal` are below 0.5, `mmca` is above 3 (docs/model.md)."""


@dataclass(frozen=True)
class FirstLoss:
    """Mean cross-entropies per supervised token of the same answers, before the first step, in nats."""

    with_images: float
    text_only: float
    conversations: int

    @property
    def far_above(self) -> bool:
        """Whether images disturb the decoder: the loss with them is far above the loss without."""
        return math.isfinite(self.with_images) and self.with_images - self.text_only > BOUND

    def describe(self) -> str:
        """Both losses as one line of text."""
        return (
            f"loss before the first step, of {self.conversations} conversations: {self.with_images:.2f} with images, "
            f"{self.text_only:.2f} without"
        )


def measure_first_loss(engine: TrainingEngine, batches: MicroBatchDataset) -> FirstLoss | None:
    """Measure the first global batch of `batches`; None if none of its conversations shows an image.

    All ranks must call it, and all return the same.
    """
    pairs = list(_pairs(batches))
    own, most = engine.count_and_most(len(pairs))
    if own == 0:
        return None
    filler = [batches.filler()] * (most - len(pairs))
    losses = []
    for column in (0, 1):
        totals = engine.evaluate([*(pair[column] for pair in pairs), *filler])
        assert totals is not None
        losses.append(totals.loss)
    return FirstLoss(losses[0], losses[1], own)


def _pairs(batches: MicroBatchDataset) -> Iterator[tuple[MicroBatch, MicroBatch]]:
    """This rank's share of the first conversations that show images: a batch of each, and one of it without images."""
    positions = batches.first_with_images(CONVERSATIONS)
    for position in positions[batches.rank :: batches.ranks]:
        yield batches.alone(position), batches.alone(position, images=False)


def warning(measured: FirstLoss | None, settings: RunConfig) -> str | None:
    """What to print if the images disturb a decoder that is frozen; None if they do not, or if it is trained."""
    if measured is None or not measured.far_above or settings.train_language != "frozen":
        return None
    remedy = "train the decoder (`train_language: lora`)"
    if settings.attention != "dattn":
        remedy = f"write `attention: dattn`, which leaves a pretrained decoder as it is, or {remedy}"
    return (
        f"the images disturb the frozen decoder: before the first step its loss per token is "
        f"{measured.with_images:.2f} with images and {measured.text_only:.2f} without, with attention "
        f"{settings.attention}. A frozen decoder cannot learn to write in spite of them: {remedy}"
    )
