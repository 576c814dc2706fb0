"""What of a configuration does not fit together is refused, with the line to write."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from scripts.config import settings
from tests.scripts.config.configurations import OWN, decoder, encoder, refused, two_names, written
from tests.tiny_models import make_tokenizer

ROOT = Path(__file__).resolve().parents[3]


def test_a_written_number_of_image_tokens_that_the_encoder_does_not_make_is_refused(tmp_path: Path):
    error = refused({**two_names(tmp_path), "tokens": {"mine": {"image_tokens": 4}}})
    assert "makes 16 tokens of an image, but tokens.mine counts 4; write image_tokens: 16" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_layer": -99}, "vision_layer: {vision} has 12 layers, so this is -1 (its output) to -13"),
        ({"vision_layer": 13}, "to -13 (its input), not 13"),
        ({"projector": "perceiver", "projector_queries": 10}, "should be a square number, such as 9 or 16"),
    ],
)
def test_what_the_encoder_cannot_give_is_refused(tmp_path: Path, changes: dict, words: str):
    assert words.format(vision=tmp_path / "vision") in refused(two_names(tmp_path, **changes))


def test_a_class_token_that_an_encoder_does_not_have_cannot_be_kept(tmp_path: Path):
    siglip = encoder(tmp_path / "siglip", model_type="siglip_vision_model")
    assert f"{siglip} has no class token; write class_token: drop" in refused(
        two_names(tmp_path, vision=siglip, class_token="keep")
    )


def test_encoder_and_decoder_in_the_place_of_the_other_are_named(tmp_path: Path):
    pair = two_names(tmp_path)["models"]["mine"]
    tokens = {"mine": {"tokenizer": pair["language"], "image_tokens": 16}}
    turned = {"vision": pair["language"], "language": pair["vision"]}
    error = refused({**OWN, "models": {"mine": turned}, "tokens": tokens})
    assert f"models.mine.language: {pair['vision']} is an encoder of images, not a decoder of text" in error
    assert f"models.mine.vision: {pair['language']} is a decoder of text, not an encoder of images" in error


def test_a_blend_cannot_have_more_images_than_are_counted(tmp_path: Path):
    error = refused({**written(two_names(tmp_path)), "tokens": {"mine": {"max_images": 4}}})
    assert "tokens.mine.max_images: images are counted up to number 4, but blends.all has up to 8" in error
    assert "write max_images: 8" in error


# A tokenizer that is not the decoder's.


def test_the_tokenizer_of_another_decoder_is_refused_with_the_rows_of_both(tmp_path: Path):
    other = str(make_tokenizer(tmp_path / "other", texts=["zebra crossing " * 50], vocab_size=300))
    error = refused({**two_names(tmp_path), "tokens": {"mine": {"tokenizer": other}}})
    assert "tokens.mine.tokenizer" in error
    assert re.search(r"whose own one \(319 tokens\) turns .* it has 2\d\d tokens, and the decoder 320 rows", error)
    assert f"Write tokenizer: {tmp_path}/language" in error


def test_a_copy_of_the_decoders_tokenizer_is_the_same(tmp_path: Path):
    copy_of_it = str(make_tokenizer(tmp_path / "copy"))
    assert settings.load({**two_names(tmp_path), "tokens": {"mine": {"tokenizer": copy_of_it}}})


@pytest.mark.parametrize(("rows", "fits"), [(1000, False), (300, False), (330, True)])
def test_without_a_tokenizer_of_its_own_sizes_are_compared(tmp_path: Path, rows: int, fits: bool):
    tokenizer = str(make_tokenizer(tmp_path / "tokenizer"))
    bare = decoder(tmp_path / "bare", tokenizer=False, rows=rows)
    config = {**two_names(tmp_path, language=bare), "tokens": {"mine": {"tokenizer": tokenizer}}}
    if fits:
        assert settings.load(config)
    else:
        assert f"319 tokens, and the decoder {rows:,} rows" in refused(config)


def test_the_miniatures_tokenizer_is_refused_for_another_decoder(tmp_path: Path):
    error = refused({**two_names(tmp_path), "tokens": {"mine": {"tokenizer": "miniature"}}})
    assert "miniature is not the tokenizer of the decoder" in error
    assert "tokenizer: auto" in error


def test_a_decoder_without_a_tokenizer_is_named(tmp_path: Path):
    bare = decoder(tmp_path / "bare", tokenizer=False)
    assert f"{bare} holds no tokenizer" in refused(two_names(tmp_path, language=bare))


# Rates and lengths that a pretrained decoder does not survive.


def test_a_real_decoder_in_the_recipe_of_the_miniature_is_refused(tmp_path: Path):
    """The rates of the miniature destroyed a real decoder in five steps."""
    recipe = yaml.safe_load((ROOT / "recipes/own-data.yaml").read_text())
    pair = two_names(tmp_path)["models"]["mine"]
    recipe["models"]["tiny"] |= pair
    recipe["tokens"]["words"] |= {"tokenizer": pair["language"], "image_tokens": 16}
    error = refused(recipe)
    assert "runs.mmca: learning_rate 0.002 with train_language: full" in error
    assert "write learning_rate: 5e-05" in error
    recipe["runs"]["mmca"]["allow_high_rates"] = True
    assert settings.load(recipe).runs["mmca"].learning_rate == 2e-3


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"train_language": "full", "learning_rate": 2e-4}, "learning_rate 0.0002 with train_language: full"),
        ({"train_language": "lora", "learning_rate": 1e-2}, "learning_rate 0.01 with train_language: lora"),
        ({"learning_rate": 2e-3}, "embeddings_learning_rate: 0.0001"),
        ({"embeddings_learning_rate": 2e-3}, "train_embeddings: false"),
        ({"train_vision": "full", "vision_learning_rate": 1e-3}, "vision_learning_rate: 2e-06"),
    ],
)
def test_a_rate_above_what_a_pretrained_part_survives_is_refused(tmp_path: Path, run: dict, words: str):
    error = refused(written(two_names(tmp_path), **run))
    assert words in error
    assert "allow_high_rates: true" in error
    settings.load(written(two_names(tmp_path / "2"), **run, allow_high_rates=True))
    small = {"language": decoder(tmp_path / "small", layers=2), "vision": encoder(tmp_path / "few", layers=1)}
    settings.load(written(two_names(tmp_path / "3", **small), **run))


@pytest.mark.parametrize("language", ["miniature", "small", "language"])
def test_a_pretrained_encoder_is_kept_from_high_rates_beside_any_decoder(tmp_path: Path, language: str):
    if language != "miniature":
        language = decoder(tmp_path / "other", layers=2 if language == "small" else 100)
    config = written(two_names(tmp_path, language=language), train_vision="full", vision_learning_rate=1e-3)
    assert "the pretrained encoder" in refused(copy.deepcopy(config))
    del config["runs"]["only"]["vision_learning_rate"]
    assert settings.load(config).runs["only"].vision_learning_rate == 2e-6


@pytest.mark.parametrize("run", [{"train_language": "full", "learning_rate": 1e-4}, {"learning_rate": 1e-3}])
def test_usual_rates_are_accepted(tmp_path: Path, run: dict):
    assert settings.load(written(two_names(tmp_path), **run))


def test_rows_longer_than_the_decoder_reads_are_refused(tmp_path: Path):
    config = written(two_names(tmp_path, language=decoder(tmp_path / "short", max_position_embeddings=1024)))
    error = refused(config)
    assert "blends.all: sequence 4096 is longer than the 1024 positions" in error
    assert "write sequence: 1024" in error
    config["blends"]["all"]["sequence"] = 1024
    assert settings.load(config)
