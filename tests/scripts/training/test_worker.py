"""Messages of a rank about errors that it recognises."""

import pytest
import torch

from scripts.training.worker import nondeterminism_hint


def test_an_operation_whose_results_do_not_repeat_is_named_with_the_way_out():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert "put_" in nondeterminism_hint(caught.value) and "`deterministic: false`" in nondeterminism_hint(caught.value)
    assert nondeterminism_hint(RuntimeError("CUDA error: an illegal memory access")) is None
