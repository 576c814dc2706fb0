"""The head in chunks: the same losses and gradients as at once, without the logits of all labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.label_loss import CHUNK_LOGITS, chunks_needed, head_losses

LABELS, WIDTH, VOCABULARY = 50, 16, 400


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that a result of an operation has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def results(
    chunks: int | None, dtype: torch.dtype = torch.float64, weights: bool = True
) -> tuple[list[torch.Tensor], int]:
    """Losses, and gradients of hidden states and of the head; and the numbers of the largest tensor."""
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, dtype=dtype).requires_grad_(weights)
    hidden = torch.randn(LABELS, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(VOCABULARY, (LABELS,))
    with LargestTensor() as largest:
        losses = head_losses(head, hidden, targets, chunks)
        # Losses with weights of their own.
        (losses * torch.linspace(1, 2, LABELS)).sum().backward()
    gradients = [x.grad for x in (hidden, *head.parameters()) if x.grad is not None]
    return [losses.detach(), *gradients], largest.numbers


@pytest.mark.parametrize("weights", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("chunks", [2, 7, LABELS, LABELS + 3])
def test_losses_and_gradients_are_those_of_one_call(chunks: int, weights: bool):
    (whole, most), (parts, few) = results(1, weights=weights), results(chunks, weights=weights)
    for actual, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    assert most == LABELS * VOCABULARY
    assert few <= max(-(-LABELS // chunks) * VOCABULARY, VOCABULARY * WIDTH)


def test_half_precision_loses_in_float32():
    for dtype in (torch.bfloat16, torch.float16):
        losses = results(3, dtype)[0][0]
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, results(1, dtype)[0][0])


def test_a_call_is_divided_only_where_its_logits_are_many():
    assert chunks_needed(0, 32_000) == chunks_needed(2_000, 32_000) == 1
    assert chunks_needed(2_000, 151_936) == 5
    assert chunks_needed(5, CHUNK_LOGITS) == 5


def test_no_label_has_a_gradient_of_zero():
    head = nn.Linear(WIDTH, VOCABULARY)
    hidden = torch.randn(0, WIDTH, requires_grad=True)
    losses = head_losses(head, hidden, torch.zeros(0, dtype=torch.int64), 2)
    losses.sum().backward()
    assert losses.shape == (0,) and hidden.grad.shape == (0, WIDTH) and not head.weight.grad.any()
    assert F.cross_entropy(head(hidden), torch.zeros(0, dtype=torch.int64), reduction="sum") == 0
