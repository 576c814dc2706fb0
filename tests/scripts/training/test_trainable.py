"""What is trained: the four parts, their rates, adapters that start as nothing and merge exactly, and the table."""

import pytest
import torch
from torch import nn

from model.modeling import VisualChatForConditionalGeneration
from scripts.common.errors import UserError
from scripts.config.run import RunConfig
from scripts.inference.lora import merge_weights
from scripts.training.trainable import mark_trainable, parameter_groups, parameter_table
from tests.model.conversations import ONE_IMAGE, TEXT_ONLY, TWO_IMAGES, batch_of
from tests.tiny_models import make_model


def run(**changes) -> RunConfig:
    return RunConfig(**{"model": "m", "blend": "b"} | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def batch(folder):
    from model.processing import VisualChatProcessor

    return batch_of(VisualChatProcessor.from_pretrained(folder), TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)


@pytest.fixture
def model(folder) -> VisualChatForConditionalGeneration:
    return VisualChatForConditionalGeneration.from_pretrained(folder)


def trained(model, **changes) -> set[str]:
    mark_trainable(model, run(**changes))
    parts = [name.split(".") for name, value in model.named_parameters() if value.requires_grad]
    return {f"{part[0]}.{part[2]}" if part[0] == "language_model" else part[0] for part in parts}


def test_the_settings_choose_what_is_trained(model):
    assert trained(model) == {"projector", "language_model.embed_tokens"}
    assert trained(model, train_embeddings=False) == {"projector"}
    assert trained(model, train_projector=False) == {"language_model.embed_tokens"}
    decoder = {"language_model.layers", "language_model.norm"}
    assert trained(model, train_language="full") == {"projector", "language_model.embed_tokens"} | decoder
    assert "language_model.embed_tokens" not in trained(model, train_language="full", train_embeddings=False)
    assert trained(model, train_vision="full", train_projector=False, train_embeddings=False) == {"vision_tower"}
    with pytest.raises(ValueError, match="nothing to train"):
        run(train_embeddings=False, train_projector=False)


def test_an_untied_head_belongs_to_the_language_model(folder):
    model = VisualChatForConditionalGeneration.from_pretrained(folder)
    model.language_model.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    assert "language_model.weight" in trained(model, train_language="full")
    assert trained(model) == {"projector", "language_model.embed_tokens"}


ADAPTERS = {"train_language": "lora", "train_vision": "lora", "language_lora_rank": 3, "vision_lora_rank": 2}


@pytest.mark.parametrize("layer", [-1, -2])
def test_adapters_lie_beside_every_linear_layer_that_an_image_or_a_token_passes(folder, batch, layer):
    model = VisualChatForConditionalGeneration.from_pretrained(folder)
    model.vision_tower.layer = layer  # -2: nothing passes the encoder's last layer
    before = model(**batch).loss
    mark_trainable(model, run(**ADAPTERS, train_embeddings=False, train_projector=False))
    assert torch.equal(model(**batch).loss, before), "an adapter starts as nothing"
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora_" in name for name in names)
    language = [name for name in names if name.startswith("language_model")]
    assert len(language) == 2 * 7 * 2, "two layers of seven matrices, A and B of each"
    vision = [name for name in names if name.startswith("vision_tower")]
    assert len(vision) == (3 + layer) * 6 * 2
    model(**batch).loss.backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == names


def test_every_trained_parameter_of_a_whole_encoder_has_a_gradient(model, batch):
    mark_trainable(model, run(train_vision="full", train_language="full"))
    model.train()(**batch).loss.backward()
    assert all((value.grad is not None) == value.requires_grad for value in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_merge_exactly(folder, batch, dtype):
    model = VisualChatForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    settings = run(**ADAPTERS, lora_scale=1.5)
    mark_trainable(model, settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    names = {name: value.detach().float() for name, value in model.named_parameters() if value.requires_grad}
    plain = VisualChatForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    old = {name: value.detach().clone() for name, value in plain.named_parameters()}
    merge_weights(plain, names, settings.lora_scale)
    for name, value in plain.named_parameters():
        key = name.removesuffix(".weight") + ".lora_{}.default.weight"
        if key.format("A") in names:
            update = 1.5 * names[key.format("B")].double() @ names[key.format("A")].double()
            assert torch.equal(value, (old[name].double() + update).to(dtype)), "rounded once, and only once"
            assert not torch.equal(value, old[name])
        else:
            assert torch.equal(value, names[name].to(dtype) if name in names else old[name]), name
    with torch.no_grad():
        apart, merged = model(**batch).logits, plain(**batch).logits
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(merged, apart, **tolerance)


def test_weights_that_do_not_fit_are_refused(model):
    with pytest.raises(UserError, match=r"projector.nothing is \(2,\) in the weights and absent in the model"):
        merge_weights(model, {"projector.nothing": torch.zeros(2)}, 1.0)
    adapter = {f"projector.nothing.lora_{x}.default.weight": torch.zeros(2, 2) for x in "AB"}
    with pytest.raises(UserError, match=r"projector.nothing.weight"):
        merge_weights(model, adapter, 1.0)


def test_every_part_has_its_rate_and_only_matrices_decay(model):
    settings = run(
        **ADAPTERS,
        weight_decay=0.1,
        learning_rate=1e-3,
        projector_learning_rate=1e-2,
        embeddings_learning_rate=2e-3,
        vision_learning_rate=3e-3,
    )
    mark_trainable(model, settings)
    names = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
    rates = {"projector": 1e-2, "vision_tower": 3e-3, "language_model": 1e-3}
    groups, found = parameter_groups(model, settings), []
    for group in groups:
        for value in group["params"]:
            name = names[id(value)]
            found.append(name)
            assert group["peak"] == group["lr"] == (2e-3 if "embed_tokens" in name else rates[name.split(".")[0]])
            assert (value.ndim > 1) == (group["weight_decay"] > 0)
    assert sorted(found) == sorted(names.values())


def test_equal_rates_share_a_group(model):
    settings = run(train_language="full")
    mark_trainable(model, settings)
    assert len(parameter_groups(model, settings)) == 1


def test_the_table_shows_what_is_frozen(model):
    settings = run(train_language="lora", language_lora_rank=2, projector_learning_rate=5e-3)
    mark_trainable(model, settings)
    rows = [line.split() for line in parameter_table(model, settings).splitlines()]
    assert rows[0] == ["part", "parameters", "trained", "how", "peak", "rate"]
    by_part = {row[0]: row[1:] for row in rows[1:]}
    assert by_part["vision"][1:] == ["0", "frozen"]
    assert by_part["embeddings"] == ["10,240", "10,240", "full", "0.001"]
    assert by_part["projector"] == ["1,120", "1,120", "full", "0.005"]
    per_layer = 4 * (32 + 32) + 3 * (32 + 64)
    assert by_part["language"][1:] == [f"{2 * 2 * per_layer:,}", "lora", "0.001"]
    total = sum(value.numel() for value in model.parameters())
    assert by_part["all"][0] == f"{total:,}"
