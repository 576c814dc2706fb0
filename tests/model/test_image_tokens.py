"""The number of tokens of an image, computed from configuration files, is the one that the network makes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    Siglip2VisionConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from model.configuration import QwenVisionConfig, VisualChatConfig
from model.image_tokens import image_tokens, square_side
from model.processing import image_side, load_image_processor
from model.projector import PROJECTORS, build_projector
from model.vision import VisionTower

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS = {
    "clip": CLIPVisionConfig(**SIZES, image_size=48, patch_size=16),
    "siglip": SiglipVisionConfig(**SIZES, image_size=48, patch_size=8),
    "siglip2": Siglip2VisionConfig(**SIZES, num_patches=16, patch_size=8),
    "dinov2": Dinov2Config(**SIZES, image_size=42, patch_size=14),
    "registers": Dinov2WithRegistersConfig(**SIZES, image_size=42, patch_size=14, num_register_tokens=4),
    "qwen": QwenVisionConfig(
        image_size=28, patch_size=14, vit_width=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, positions=4, resampler_queries=9, resampler_heads=1,
    ),
}  # fmt: skip


def tokens_of_the_network(encoder, **options) -> int:
    text = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config = VisualChatConfig(vision_config=encoder, text_config=text, **options)
    pixels = torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8)
    with torch.no_grad():
        config.vision_tokens = VisionTower(config, AutoModel.from_config(encoder))(pixels).shape[1]
        projector = build_projector(config)
        return projector(projector.blank(torch.device("cpu"), torch.float32)).shape[1]


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("class_token", ["drop", "keep"])
@pytest.mark.parametrize("projector", sorted(PROJECTORS))
@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_the_network_makes_as_many_tokens(kind: str, projector: str, class_token: str, layer: int):
    encoder = ENCODERS[kind]
    if kind == "qwen" and layer != -1:
        pytest.skip("this encoder has only its output")
    fields = json.loads(json.dumps(encoder.to_dict()))
    expected = tokens_of_the_network(
        encoder,
        projector=projector,
        projector_queries=4,
        vision_class_token=class_token,
        vision_feature_layer=layer,
    )
    assert image_tokens(fields, square_side(fields), projector, 4, class_token) == expected


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        CLIPImageProcessorPil(size={"shortest_edge": 40}, do_center_crop=False),
        CLIPImageProcessorPil(size={"height": 24, "width": 24}, do_center_crop=False),
        SiglipImageProcessorPil(size={"height": 24, "width": 24}),
    ],
)
def test_the_side_of_an_image_is_that_of_the_image_processor(processor, tmp_path: Path):
    processor.save_pretrained(tmp_path)
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert square_side({"image_size": 99}, content) == image_side(load_image_processor(tmp_path))


def test_siglip_2_of_any_shape_gets_squares_of_as_many_patches():
    assert square_side({"num_patches": 256, "patch_size": 16}, {"max_num_patches": 256, "patch_size": 16}) == 256
    assert square_side({"num_patches": 256, "patch_size": 16}) == 256


@pytest.mark.parametrize(
    ("fields", "preprocessor", "words"),
    [
        ({"patch_size": 16}, None, "no image size"),
        ({"image_size": 64}, None, "no patch_size"),
        ({"image_size": 64, "patch_size": 16, "model_type": "new"}, None, "'new' have a class token"),
        ({"patch_size": 16}, {"size": {"height": 32, "width": 64}}, "64 x 32"),
    ],
)
def test_what_cannot_be_derived_is_an_error(fields, preprocessor, words: str):
    with pytest.raises(ValueError, match=words):
        image_tokens(fields, square_side(fields, preprocessor), "linear", 4, "keep")
