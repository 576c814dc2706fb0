"""Encoders of every kind behind one tower, which layer and which tokens of them, and the projectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from model.projector import PROJECTORS, Projector
from model.resampler import Resampler, interpolate_positions, sincos_position_embedding
from scripts.config import model as config
from tests.model.conversations import PICTURES, TEXT_ONLY, TWO_IMAGES, batch_of, prompts
from tests.tiny_models import IMAGE_SIZE, IMAGE_TOKENS, make_bases

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARES = {**SMALL, "image_size": IMAGE_SIZE, "patch_size": 8}
CROP = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
SIZE = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}

# What AutoModel is given, and the image processor beside it.
ENCODERS = {
    "whole clip": (
        lambda: CLIPModel(CLIPConfig(vision_config=SQUARES, text_config={**SMALL, "vocab_size": 99}, projection_dim=8)),
        CLIPImageProcessorPil(**CROP),
    ),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**SQUARES)), SiglipImageProcessorPil(**SIZE)),
    "siglip2": (
        lambda: Siglip2VisionModel(Siglip2VisionConfig(**SMALL, patch_size=8, num_patches=IMAGE_TOKENS)),
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=IMAGE_TOKENS),
    ),
    # As published: trained at 518 pixels, with an image processor that crops to less.
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**DINO, image_size=56)), BitImageProcessorPil(**CROP)),
    "dinov2 with registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, image_size=56, num_register_tokens=3)),
        BitImageProcessorPil(**CROP),
    ),
    "clip at another size": (
        lambda: (
            CLIPModel(
                CLIPConfig(
                    vision_config={**SQUARES, "image_size": 64},
                    text_config={**SMALL, "vocab_size": 99},
                    projection_dim=8,
                )
            ).vision_model
        ),
        CLIPImageProcessorPil(**CROP),
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def join(bases, tmp_path_factory):
    """Join an encoder of `ENCODERS` and the tiny decoder; returns the encoder's folder, the model and its processor."""

    def join(kind: str, **options):
        folder = tmp_path_factory.mktemp("encoder")
        torch.manual_seed(3)
        encoder, images = ENCODERS[kind]
        encoder().save_pretrained(folder)
        images.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
        model = VisualChatForConditionalGeneration.from_base_models(folder, bases["language"], tokenizer, **options)
        processor = VisualChatProcessor.from_base_models(folder, tokenizer, model.config.image_tokens)
        return folder, model, processor

    return join


def transformers_features(kind: str, folder, model) -> torch.Tensor:
    """The features (N, tokens, width) of the three pictures by the image processor and encoder of `transformers`."""
    images = [np.moveaxis(image, 0, -1) for image in PICTURES]
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    options = {"interpolate_pos_encoding": True} if kind == "clip at another size" else {}
    with torch.no_grad():
        return model.vision_tower.encoder(**inputs, **options).last_hidden_state


@pytest.mark.parametrize("kind", ENCODERS)
def test_features_are_those_of_transformers(join, kind):
    folder, model, processor = join(kind)
    assert model.config.image_tokens == model.config.vision_tokens == IMAGE_TOKENS
    assert all(np.array_equal(processor.preprocess_image(_image(p)), p) for p in PICTURES)
    with torch.no_grad():
        ours = model.vision_tower(torch.from_numpy(np.stack(PICTURES)))
    theirs = transformers_features(kind, folder, model)
    torch.testing.assert_close(ours, theirs[:, -IMAGE_TOKENS:], rtol=1e-4, atol=1e-5)


def _image(array: np.ndarray):
    from PIL import Image

    return Image.fromarray(np.moveaxis(array, 0, -1))


@pytest.mark.parametrize("kind", ENCODERS)
def test_any_encoder_trains_generates_and_survives_a_folder(join, kind, tmp_path):
    _, model, processor = join(kind)
    model.save_pretrained(tmp_path)
    again = VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    batch = batch_of(processor, TWO_IMAGES, TEXT_ONLY)
    loss = model.train()(**batch).loss
    assert again.train()(**batch).loss.item() == loss.item()
    loss.backward()
    assert any(value.grad is not None and value.grad.any() for value in model.vision_tower.parameters())
    tokens = again.eval().generate(**prompts(processor, TWO_IMAGES), max_new_tokens=2, eos_token_id=None)
    assert tokens.shape[1] == prompts(processor, TWO_IMAGES)["input_ids"].shape[1] + 2


@pytest.mark.parametrize(("kind", "extra"), [("whole clip", 1), ("dinov2 with registers", 4), ("siglip", 0)])
def test_class_and_register_tokens_are_kept_on_request(join, kind, extra):
    _, model, _ = join(kind, vision_class_token="keep")
    assert model.config.image_tokens == model.config.vision_tokens == IMAGE_TOKENS + extra


@pytest.mark.parametrize("kind", ["whole clip", "siglip", "siglip2", "dinov2"])
def test_an_inner_layer_is_read_on_request(join, kind):
    _, model, _ = join(kind, vision_feature_layer=-2)
    pixels = torch.from_numpy(np.stack(PICTURES))
    with torch.no_grad():
        features = model.vision_tower(pixels)
        outputs = model.vision_tower.encode(pixels, output_hidden_states=True)
    assert torch.equal(features, outputs.hidden_states[-2][:, -IMAGE_TOKENS:])
    assert not torch.allclose(features, outputs.last_hidden_state[:, -IMAGE_TOKENS:], atol=1e-3)


def test_images_that_are_not_square_are_refused(bases):
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    folder = bases["vision"].parent / "wide"
    folder.mkdir()
    for file in bases["vision"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    SiglipImageProcessorPil(size={"height": 32, "width": 64}).save_pretrained(folder)
    with pytest.raises(ValueError, match="images of 64 x 32 pixels; configure it to make squares"):
        VisualChatForConditionalGeneration.from_base_models(folder, bases["language"], tokenizer)


# Options of a projector's model and the number of its image tokens, where they are not the usual ones.
PROJECTOR_OPTIONS = {"perceiver": ({"projector_queries": 9}, 9)}


@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize("class_token", ["drop", "keep"])
def test_every_projector_trains_all_its_weights_and_survives_a_folder(join, kind, class_token, tmp_path):
    options, tokens = PROJECTOR_OPTIONS.get(kind, ({}, IMAGE_TOKENS))
    _, model, processor = join("whole clip", projector=kind, vision_class_token=class_token, **options)
    tokens += class_token == "keep" and kind != "perceiver"
    assert model.config.image_tokens == processor.image_tokens == tokens
    model.save_pretrained(tmp_path)
    again = VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    batch = batch_of(processor, TWO_IMAGES)
    model.train()(**batch).loss.backward()
    assert all(value.grad.any() for value in model.projector.parameters())
    del batch["labels"]
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
    model.zero_grad()
    model.train()(**batch_of(processor, TEXT_ONLY)).loss.backward()
    assert all(value.grad is not None and not value.grad.any() for value in model.projector.parameters())


def test_a_projector_that_does_not_exist_is_refused(join):
    with pytest.raises(ValueError, match="projector: 'cubic' is not one of linear, mlp, vit, perceiver"):
        join("whole clip", projector="cubic")


def test_the_configuration_reads_names_and_descriptions_of_all_projectors():
    assert {name: cls.__doc__ for name, cls in PROJECTORS.items()} == config.PROJECTORS


def test_two_projectors_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two projectors have the name 'mlp'"):

        class Another(Projector, name="mlp"):
            pass


@pytest.mark.parametrize("kind", ["vit", "perceiver"])
def test_projectors_that_mix_tokens_see_the_whole_image(join, kind):
    _, model, _ = join("whole clip", projector=kind, **PROJECTOR_OPTIONS.get(kind, ({}, 0))[0])
    projector = model.projector.double()
    features = torch.randn(1, IMAGE_TOKENS, 32, dtype=torch.float64)
    changed = features.clone()
    changed[0, 5] = -changed[0, 5]
    with torch.no_grad():
        difference = (projector(features) - projector(changed)).abs().amax(-1)[0]
    assert (difference > 1e-9).all()


def test_a_resampler_depends_on_the_positions_of_its_features():
    torch.manual_seed(0)
    resampler = Resampler(queries=4, width=16, heads=2, feature_width=8)
    resampler.init_weights()
    features = torch.randn(1, 9, 8)
    with torch.no_grad():
        straight, mixed = resampler(features), resampler(features[:, torch.randperm(9)])
    assert straight.shape == (1, 4, 16) and not torch.allclose(straight, mixed, atol=1e-4)
    with pytest.raises(ValueError, match="must be a square"):
        Resampler(queries=5, width=16, heads=2, feature_width=8)


def test_positions_are_sines_and_cosines_of_column_and_row():
    positions = sincos_position_embedding(3, 16)
    for row in range(3):
        for column in range(3):
            angles = [position / 10000 ** (i / 4) for position in (column, row) for i in range(4)]
            expected = np.array([np.sin(angles[:4]), np.cos(angles[:4]), np.sin(angles[4:]), np.cos(angles[4:])])
            np.testing.assert_allclose(positions[3 * row + column], expected.flatten(), atol=1e-6)
    assert torch.equal(interpolate_positions(positions, 9), positions)
    # Two steps of a grid twice as fine are one of the old, where all neighbours are there.
    plane = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1).view(64, 2)
    finer = interpolate_positions(plane, 256).view(16, 16, 2)[5:11, 5:11]
    assert torch.allclose((finer[2:] - finer[:-2])[..., 0], torch.ones(1))
    assert torch.allclose((finer[:, 2:] - finer[:, :-2])[..., 1], torch.ones(1))
