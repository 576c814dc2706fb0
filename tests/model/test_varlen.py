"""The model with the kernel for variable-length sequences, which needs a GPU: its definition replaces it here.

The decoder then gets the tokens of a batch in the order of the kernel's calls, without padding.
"""

import pytest
import torch

from model import varlen
from model.configuration import VisualChatConfig
from model.documents import PAD
from model.modeling import VisualChatForConditionalGeneration
from tests.model.attention_cases import reference_varlen_attn
from tests.model.conversations import ATTENTIONS, ONE_IMAGE, TEXT_ONLY, TWO_IMAGES, batch_of


@pytest.fixture(params=ATTENTIONS)
def model(request, folder, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", reference_varlen_attn)
    monkeypatch.setattr(varlen.VarlenFlash, "is_supported", staticmethod(lambda *args: True))
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    return VisualChatForConditionalGeneration.from_pretrained(folder, config=config).double()


@pytest.fixture
def seen(model) -> list[torch.Tensor]:
    """The inputs of the decoder, forward by forward."""
    inputs = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    yield inputs
    hook.remove()


def packed(batch: dict) -> dict:
    """The second row's tokens as two documents, cut in the middle."""
    modality = batch["modality"]
    ids = (modality != PAD).long()
    ids[1, int(ids[1].sum()) // 2 :] *= 2
    return batch | {"document_ids": ids}


def losses_and_gradients(model, backend: str, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    model.attention_backend = backend
    losses, _ = model.token_losses(**batch)
    (losses * torch.linspace(1, 2, len(losses))).sum().backward()
    return losses.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("change", [dict, packed])
def test_losses_and_gradients_are_those_of_the_other_back_end(model, seen, processor, change, side):
    batch = change(batch_of(processor, TWO_IMAGES, ONE_IMAGE, TEXT_ONLY, side=side))
    results = losses_and_gradients(model, "varlen", batch)
    for actual, expected in zip(results, losses_and_gradients(model, "sdpa", batch), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    tokens = int((batch["modality"] != PAD).sum())
    assert [x.shape[:2].numel() for x in seen] == [tokens, batch["input_ids"].numel()]


def test_hidden_states_and_caches_keep_the_order_of_the_batch(model, seen, processor):
    batch = batch_of(processor, TWO_IMAGES, ONE_IMAGE)
    del batch["labels"]
    real = batch["modality"] != PAD
    model.attention_backend = "varlen"
    plain = model(**batch, use_cache=False)
    assert seen[-1].shape[:2] == (1, int(real.sum()))
    states = model(**batch, use_cache=False, output_hidden_states=True)
    cached = model(**batch, use_cache=True)
    assert [x.shape[:2] for x in seen[1:]] == [batch["input_ids"].shape] * 2
    assert states.hidden_states[0].shape[:2] == batch["input_ids"].shape
    for other in (states, cached):
        torch.testing.assert_close(other.logits[real], plain.logits[real], rtol=1e-8, atol=1e-8)
