"""Every n-th layer is computed again in the backward pass, and no number changes."""

from collections import Counter

import pytest
import torch

from model.modeling import VisualChatForConditionalGeneration
from scripts.common.errors import UserError
from scripts.config.run import RunConfig
from scripts.training.checkpointed_layers import checkpoint_layers, repeated_layers
from tests.scripts.training.tiny_decoders import backward, tiny_batch, tiny_model

LAYERS = 5


def trained(every: int) -> tuple[VisualChatForConditionalGeneration, torch.Tensor, dict[str, Counter]]:
    """A model, decoder and encoder trained, after a backward pass; its loss; and how often each layer was computed."""
    model = tiny_model(layers=LAYERS, encoder_layers=3).train()
    checkpoint_layers(model, every)
    calls = {"decoder": Counter(), "encoder": Counter()}
    for part, module in (("decoder", model.get_decoder()), ("encoder", model.vision_tower)):
        for number, layer in enumerate(repeated_layers(module)):
            # Inside of what is checkpointed, unlike the layer's own hooks.
            first = next(child for child in layer.children() if "Attention" in type(child).__name__)
            first.register_forward_pre_hook(lambda *_, part=part, number=number: calls[part].update([number]))
    return model, backward(model, tiny_batch()), calls


@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_nth_layer_is_computed_twice_and_no_bit_changes(every: int):
    expected, loss, once = trained(0)
    assert all(set(counts.values()) == {1} for counts in once.values()), once
    model, same, calls = trained(every)
    assert torch.equal(same, loss)
    for (name, value), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (value.grad is None) == (other.grad is None), name
        assert value.grad is None or torch.equal(value.grad, other.grad), name
    for part, layers in (("decoder", LAYERS), ("encoder", 3)):
        assert calls[part] == {number: 2 if number % every == 0 else 1 for number in range(layers)}, part


def test_the_setting_is_a_number_or_a_switch():
    for value, every in ((True, 1), (False, 0), (0, 0), (1, 1), (3, 3)):
        assert int(RunConfig(model="m", blend="b", gradient_checkpointing=value).gradient_checkpointing) == every
    for wrong in (-1, 2.5, "yes", None):
        with pytest.raises(
            ValueError, match=r"is none of: true \(every layer\), false \(none\), n \(every n-th layer\)"
        ):
            RunConfig(model="m", blend="b", gradient_checkpointing=wrong)


def test_a_decoder_without_switches_in_its_layers_is_refused(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr("scripts.training.checkpointed_layers.repeated_layers", lambda _: [])
    with pytest.raises(UserError, match=r"gradient_checkpointing: 2 is not possible with LlamaModel"):
        checkpoint_layers(model, 2)
    checkpoint_layers(model, 1)
