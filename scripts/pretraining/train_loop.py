"""The training loop that the miniature's bases share: AdamW, warm-up, cosine, clipping."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from scripts.common.progress import Progress

_BETAS = (0.9, 0.95)
_MAX_GRAD_NORM = 1.0
_WARMUP_STEPS = 60
_FINAL_RATE = 0.02


def fit(
    parameters: Iterable[nn.Parameter], loss: Callable[[int], Tensor], steps: int, learning_rate: float, label: str
) -> None:
    """Minimise `loss(step)` over `steps` steps; the rate rises over 60 steps and falls along a cosine to 2 %.

    `label` names what is trained, for the progress bar.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=_BETAS, weight_decay=0.0)
    progress = Progress(f"pretraining the {label}", steps)
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        rate = learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS) * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, _MAX_GRAD_NORM)
        optimizer.step()
        progress.advance(note=f"loss {value.item():.3f}")
    progress.close()
