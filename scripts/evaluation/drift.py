"""How far a training has moved a model on text: likelihoods under both models, and the divergence between them.

Of one model, what its output head reads is kept (N, width), and the head itself; so that only one model is in memory at
a time, and the divergence is nevertheless exact:

    KL(before || after) = sum over tokens v of p(v) (log p(v) - log q(v))        nats per position

with p from the head of the model before training and q from that after it, both normalised in fp32. Logits of the whole
text would take the size of the vocabulary in place of the width of the model, which is 20 to 100 times as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model.modeling import VisualChatForConditionalGeneration
from model.template import IGNORE_INDEX
from scripts.common.progress import Progress
from scripts.evaluation.resampling import bootstrap

_BATCH = 8
"""Conversations in one forward pass. Fixed, so that both models compute the same sums in the same order."""
_POSITIONS = 256
"""Positions whose distributions over the vocabulary are in memory at once."""


class ScoredText(NamedTuple):
    """A conversation as tokens (T,), and the positions of those whose prediction is measured, rising and above 0."""

    ids: list[int]
    positions: list[int]


@dataclass(frozen=True)
class HeadInputs:
    """What the output head of a model reads to predict the measured tokens: of every text a tensor (n, width)."""

    head: nn.Module
    hidden: list[Tensor]


class TextDrift(NamedTuple):
    """Sums over the measured tokens of one text, in nats: divergence, and log-likelihoods under both models."""

    tokens: int
    kl: float
    before: float
    after: float


def head_inputs(model: VisualChatForConditionalGeneration, texts: Sequence[ScoredText], label: str) -> HeadInputs:
    """Run a model over texts without images; results are on the CPU, in the order of `texts`."""
    order = sorted(range(len(texts)), key=lambda index: (-len(texts[index].ids), texts[index].ids))
    hidden: list[Tensor] = [torch.empty(0)] * len(texts)
    read: list[Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].cpu()))
    progress = Progress(label, len(texts))
    try:
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                indices = order[start : start + _BATCH]
                batch = [texts[index] for index in indices]
                read.clear()
                model(**_batch(batch, model.device))
                parts = torch.cat(read).split([len(text.positions) for text in batch])
                for index, part in zip(indices, parts, strict=True):
                    hidden[index] = part.clone()
                progress.advance(len(indices))
    finally:
        hook.remove()
    progress.close()
    return HeadInputs(head, hidden)


def text_drifts(before: HeadInputs, after: HeadInputs, texts: Sequence[ScoredText]) -> list[TextDrift]:
    """Compare two models on the same texts."""
    return [
        _text_drift(before.head, after.head, first, second, [text.ids[position] for position in text.positions])
        for first, second, text in zip(before.hidden, after.hidden, texts, strict=True)
    ]


@torch.inference_mode()
def _text_drift(before: nn.Module, after: nn.Module, first: Tensor, second: Tensor, targets: list[int]) -> TextDrift:
    sums = np.zeros(3)
    for start in range(0, len(targets), _POSITIONS):
        part = slice(start, start + _POSITIONS)
        p, q = _log_probabilities(before, first[part]), _log_probabilities(after, second[part])
        chosen = torch.tensor(targets[part], device=p.device)[:, None]
        kl = (p.exp() * (p - q)).sum(-1, dtype=torch.float64)
        sums += [float(kl.sum()), *(float(each.gather(1, chosen).double().sum()) for each in (p, q))]
    return TextDrift(len(targets), *sums.tolist())


def _log_probabilities(head: nn.Module, hidden: Tensor) -> Tensor:
    """The distributions (n, vocabulary), in fp32, that a head predicts from what it reads (n, width)."""
    device = next(head.parameters()).device
    return head(hidden.to(device)).float().log_softmax(-1)


def per_token(drifts: Sequence[TextDrift], field: str, confidence: float) -> dict[str, Any]:
    """The mean of a field of `TextDrift` per token, with its bootstrap interval over the texts.

    Returns:
        {"value", "interval", "tokens", "texts"}; interval None for fewer than two texts.
    """
    units = np.array([(getattr(drift, field), drift.tokens) for drift in drifts], dtype=float)
    total = units.sum(0)
    interval = bootstrap(units, _mean, confidence) if len(units) > 1 else None
    return {
        "value": _mean(total),
        "interval": list(interval) if interval else None,
        "tokens": int(total[1]),
        "texts": len(units),
    }


def _mean(total: np.ndarray) -> float:
    return float(total[0] / total[1]) if total[1] else float("nan")


def _batch(texts: Sequence[ScoredText], device: torch.device) -> dict[str, Tensor]:
    """Input ids, modality and labels (B, T), padded on the right."""
    length = max(len(text.ids) for text in texts)
    shape = (len(texts), length)
    ids, modality = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        modality[row, : len(text.ids)] = 1
        labels[row, text.positions] = torch.tensor([text.ids[position] for position in text.positions])
    tensors = {"input_ids": ids, "modality": modality, "labels": labels}
    return {name: value.to(device) for name, value in tensors.items()}
