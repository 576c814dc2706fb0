"""Small conversations about three pictures, as batches of tensors: what the tests of the whole model share."""

from __future__ import annotations

import numpy as np
import torch

from tests.tiny_models import IMAGE_SIZE, user

ATTENTIONS = ("mmca", "causal", "dattn")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)


PICTURES = [picture(seed) for seed in range(3)]


TWO_IMAGES = [
    user("What is on the left?", 0),
    {"role": "assistant", "content": "A red circle."},
    user("Which image has more?", 1),
    {"role": "assistant", "content": "The second image."},
]
ONE_IMAGE = [user("How many objects?", 2), {"role": "assistant", "content": "Two."}]
TEXT_ONLY = [user("yes or no?"), {"role": "assistant", "content": "yes"}]


def batch_of(processor, *conversations, pictures=PICTURES, side="right") -> dict:
    return processor.collate([(processor.encode(messages), pictures) for messages in conversations], side)


def logits_of(model, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def prompts(processor, *conversations) -> dict:
    batch = batch_of(processor, *(messages[:-1] for messages in conversations), side="left")
    del batch["labels"]
    return batch
