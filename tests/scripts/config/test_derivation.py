"""What a configuration leaves out about its models is derived from their files; what cannot work is refused."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml

from scripts.common.errors import UserError
from scripts.config import base_facts, machine, settings
from tests.tiny_models import make_tokenizer

ROOT = Path(__file__).resolve().parents[3]
OWN = {"custom": {"pets": {"folder": "data/pets"}}}
CLIP = "openai/clip-vit-large-patch14"
LLAMA = "meta-llama/Llama-2-7b-hf"


@pytest.fixture(autouse=True)
def _no_network_and_no_gpu(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def encoder(folder: Path, layers: int = 12, **fields) -> str:
    """The folder of an encoder without weights; by default of 85 million parameters."""
    folder.mkdir(parents=True)
    config = {"model_type": "clip_vision_model", "image_size": 64, "patch_size": 16, "hidden_size": 768, **fields}
    config["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def decoder(folder: Path, tokenizer: bool = True, rows: int | None = None, layers: int = 100, **fields) -> str:
    """The folder of a decoder without weights; by default of 13 million parameters, with a tokenizer that fits."""
    make_tokenizer(folder)
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    if not tokenizer:
        for file in folder.iterdir():
            file.unlink()
    config = {
        "model_type": "llama",
        "vocab_size": rows or size,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
        **fields,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def two_names(tmp_path: Path, **changes) -> dict:
    """A configuration of own data and the names of an encoder and a decoder."""
    model = {"vision": encoder(tmp_path / "vision"), "language": decoder(tmp_path / "language"), **changes}
    return {**OWN, "models": {"mine": model}}


def written(config: dict, **run) -> dict:
    """A configuration with one blend and one run, both written."""
    blends = {"all": {"datasets": {"pets": {}}}}
    return {"name": "x", **config, "blends": blends, "runs": {"only": {"model": "mine", "blend": "all", **run}}}


def refused(config: dict) -> str:
    with pytest.raises(UserError) as error:
        settings.load(config)
    return str(error.value)


def set_chat_template(config: dict, template: str) -> None:
    """Give the decoder of `two_names` a chat template, or take it away."""
    file = Path(config["models"]["mine"]["language"]) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def test_two_names_and_own_data_are_a_whole_configuration(tmp_path: Path):
    config = two_names(tmp_path)
    set_chat_template(config, "{{ messages }}")
    loaded = settings.load(config)
    model = loaded.models["mine"]
    assert model.tokens == "mine"
    assert loaded.tokens["mine"].tokenizer == model.language
    assert loaded.tokens["mine"].image_tokens == 16
    first, blend = loaded.blends["first"], loaded.blends["mine"]
    assert (blend.tokens, blend.packing, list(blend.datasets)) == ("mine", True, ["pets", "decoder-answers"])
    assert (first.tokens, first.packing, list(first.datasets)) == ("mine", True, ["pets"])
    assert loaded.replay["decoder-answers"].model == "mine"
    align, tune = loaded.runs["align"], loaded.runs["tune"]
    assert (align.blend, align.model, tune.blend, tune.start) == ("first", "mine", "mine", "align")
    assert (align.train_language, align.train_embeddings, align.evaluate) == ("frozen", False, False)
    assert (tune.train_language, tune.language_rate, tune.precision) == ("lora", 1e-3, "fp32")
    assert (align.projector_learning_rate, tune.projector_learning_rate) == (4e-3, 4e-3)


def test_the_runs_of_the_recipe_come_with_its_projector_and_ranks_of_this_machine(tmp_path: Path):
    loaded = settings.load(two_names(tmp_path))
    assert loaded.models["mine"].projector == "mlp"
    assert settings.load(two_names(tmp_path / "1", projector="linear")).models["mine"].projector == "linear"
    rows = loaded.blends["mine"].global_batch
    assert {rows % run.ranks for run in loaded.runs.values()} == {0}
    assert settings.load(written(two_names(tmp_path / "2"), ranks=1)).models["mine"].projector == "linear"


def test_a_decoder_that_was_not_tuned_to_chat_gets_no_replay(tmp_path: Path):
    """It closes no answer, so the job would end with an error after all data were made."""
    config = two_names(tmp_path)
    for template, names in (("{{ messages }}", ["pets", "decoder-answers"]), ("", ["pets"])):
        set_chat_template(config, template)
        loaded = settings.load(copy.deepcopy(config))
        assert [*loaded.blends["mine"].datasets] == names
        assert [*loaded.replay] == names[1:]


def test_two_names_beside_own_blends_and_runs_need_no_tokens(tmp_path: Path):
    loaded = settings.load(written(two_names(tmp_path)))
    assert loaded.blends["all"].tokens == loaded.models["mine"].tokens == "mine"


def test_derived_values_equal_written_ones(tmp_path: Path):
    short = written(two_names(tmp_path), train_language="lora", precision="auto")
    long = copy.deepcopy(short)
    long["models"]["mine"]["tokens"] = long["blends"]["all"]["tokens"] = "mine"
    long["tokens"] = {"mine": {"tokenizer": long["models"]["mine"]["language"], "image_tokens": 16}}
    long["runs"]["only"] |= {
        "precision": "fp32",
        "learning_rate": 1e-3,
        "embeddings_learning_rate": 1e-4,
        "projector_learning_rate": 4e-3,
    }
    one, other = settings.load(short), settings.load(long)
    assert one == other
    assert one.runs["only"].numbers() == other.runs["only"].numbers()
    assert one.tokens["mine"].rerun_key() == other.tokens["mine"].rerun_key()


def test_the_miniature_keeps_its_numbers():
    loaded = settings.load({"name": "x", **OWN, "runs": {"r": {"model": "tiny", "blend": "mine"}}})
    run = loaded.runs["r"]
    assert run.numbers() == settings.RunConfig(model="tiny", blend="mine").numbers()
    assert (run.learning_rate, run.projector_learning_rate, run.embeddings_learning_rate) == (1e-3, None, None)


def test_image_tokens_of_the_miniature_are_derived_without_its_files():
    config = {**OWN, "models": {"mine": {"vision": "miniature", "language": "miniature", "class_token": "keep"}}}
    assert settings.load(config).tokens["mine"].image_tokens == 5


def test_published_architectures_are_built_in():
    config = {**OWN, "models": {"mine": {"vision": CLIP, "language": LLAMA, "class_token": "keep"}}}
    assert settings.load(config).tokens["mine"].image_tokens == 257


def test_defaults_of_a_class_count_where_a_file_leaves_fields_out(tmp_path: Path):
    (tmp_path / "siglip").mkdir()
    fields = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    (tmp_path / "siglip/config.json").write_text(json.dumps(fields))
    loaded = settings.load(two_names(tmp_path, vision=str(tmp_path / "siglip")))
    assert loaded.tokens["mine"].image_tokens == 196


def test_the_image_processor_decides_over_the_encoder(tmp_path: Path):
    config = two_names(tmp_path)
    (tmp_path / "vision/preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 32, "width": 32}}))
    assert settings.load(config).tokens["mine"].image_tokens == 4


def test_the_cache_of_the_hub_is_a_source(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub/models--some--encoder/snapshots/abc"
    encoder(snapshot, image_size=48)
    (tmp_path / "hub/models--some--encoder/refs").mkdir()
    (tmp_path / "hub/models--some--encoder/refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    found = base_facts.facts_of("some/encoder", "vision", tmp_path)
    assert found is not None
    assert found.fields["image_size"] == 48


@pytest.mark.parametrize(("name", "of_hub"), [("some/encoder", True), ("data/none", True), ("/nowhere/encoder", False)])
def test_an_encoder_that_is_nowhere_is_one_error_with_the_line_to_write(tmp_path: Path, name: str, of_hub: bool):
    error = refused(two_names(tmp_path, vision=name))
    assert f"models.mine.vision: how many tokens {name} makes" in error
    assert "tokens: {mine: {image_tokens: " in error
    config = {**two_names(tmp_path / "2", vision=name), "tokens": {"mine": {"image_tokens": 100}}}
    if of_hub:
        assert settings.load(config).tokens["mine"].image_tokens == 100
    else:
        assert f"models.mine.vision: there is no folder {name}, and no model of the hub" in refused(config)


def test_without_a_model_a_blend_has_to_name_its_tokens():
    blends = {"b": {"datasets": {"llava": {}}, "sequence": 512, "global_batch": 4}}
    tokens = {"words": {"tokenizer": "miniature", "image_tokens": 4}}
    config = {"name": "n", "results": "r", "tokens": tokens, "blends": blends, "models": {}, "runs": {}}
    with pytest.raises(UserError, match=r"blends\.b\.tokens: there is no model.*name an entry here"):
        settings.load(copy.deepcopy(config))
    config["blends"]["b"]["tokens"] = "words"
    assert settings.load(config).blends["b"].tokens == "words"


@pytest.mark.parametrize("name", ["/nowhere/decoder", "./decoder", "data/models/decoder", "owner/a decoder"])
def test_a_decoder_that_is_nowhere_and_no_name_of_the_hub_is_refused(tmp_path: Path, name: str):
    assert f"models.mine.language: there is no folder {name}, and no model of the hub" in refused(
        two_names(tmp_path, language=name)
    )


def test_a_folder_without_a_configuration_is_named(tmp_path: Path):
    folder = decoder(tmp_path / "other")
    (Path(folder) / "config.json").unlink()
    message = refused(two_names(tmp_path, language=folder))
    assert f"models.mine.language: the folder {folder} holds no config.json" in message


def test_a_decoder_of_the_hub_that_is_not_here_yet_is_accepted(tmp_path: Path):
    settings.load(two_names(tmp_path, language="owner/decoder"))


def test_auto_with_two_decoders_is_an_error_that_names_them(tmp_path: Path):
    config = two_names(tmp_path)
    first = config["models"]["mine"] | {"tokens": "both"}
    second = first | {"language": decoder(tmp_path / "other")}
    config = {**config, "models": {"one": first, "two": second}, "tokens": {"both": {"tokenizer": "auto"}}, "runs": {}}
    error = refused(config)
    assert f"one has {first['language']}" in error
    assert f"two has {second['language']}" in error


def test_models_with_different_images_cannot_share_an_entry_that_is_derived(tmp_path: Path):
    config = two_names(tmp_path)
    first = config["models"]["mine"] | {"tokens": "both"}
    config = {
        **config,
        "models": {"one": first, "two": first | {"class_token": "keep"}},
        "tokens": {"both": {}},
        "runs": {},
    }
    error = refused(config)
    assert "one makes 16" in error
    assert "two makes 17" in error


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


# The machine that plans decides.


def test_the_jobs_of_a_workflow_complete_the_configuration_as_the_machine_that_planned_it(tmp_path: Path, monkeypatch):
    config = two_names(tmp_path)
    planned = {"precision": "bf16", "gpus": 2, "cores": 8}
    monkeypatch.setenv("VISUALCHAT_PLANNED_ON", json.dumps(planned))
    runs = settings.load(copy.deepcopy(config)).runs
    assert {(run.precision, run.ranks, run.threads) for run in runs.values()} == {("bf16", 2, 1)}
    monkeypatch.setenv("VISUALCHAT_PLANNED_ON", json.dumps(planned | {"gpus": 0, "precision": "fp32"}))
    loaded = settings.load(copy.deepcopy(config))
    assert {(run.precision, run.ranks, run.threads) for run in loaded.runs.values()} == {("fp32", 2, 4)}
    assert loaded.evaluate.threads == 8
    environment = {"VISUALCHAT_PLANNED_ON": json.dumps(planned), "CUDA_VISIBLE_DEVICES": ""}
    machine.plan_here(environment)
    assert machine.planning_machine(environment) == machine.planning_machine({"CUDA_VISIBLE_DEVICES": ""})


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


@pytest.mark.parametrize(
    ("how", "name", "rate"),
    [
        ("full", "HuggingFaceTB/SmolLM2-135M-Instruct", 5e-5),
        ("full", LLAMA, 2e-5),
        ("full", "meta-llama/Llama-2-70b-hf", 1e-5),
        ("lora", "HuggingFaceTB/SmolLM2-135M-Instruct", 1e-3),
        ("lora", LLAMA, 2e-4),
        ("lora", "meta-llama/Llama-2-70b-hf", 1e-4),
        ("full", "someone/unknown", 2e-5),
    ],
)
def test_rates_depend_on_what_is_trained_and_on_the_size(tmp_path: Path, how: str, name: str, rate: float):
    loaded = settings.load(written(two_names(tmp_path, language=name), train_language=how))
    assert loaded.runs["only"].learning_rate == rate


def test_a_rate_that_is_written_holds_for_all_parts(tmp_path: Path):
    run = settings.load(written(two_names(tmp_path), train_language="lora", learning_rate=3e-4)).runs["only"]
    assert [run.rate_of(part) for part in ("language", "projector", "embeddings")] == [3e-4] * 3


def test_rows_longer_than_the_decoder_reads_are_refused(tmp_path: Path):
    config = written(two_names(tmp_path, language=decoder(tmp_path / "short", max_position_embeddings=1024)))
    error = refused(config)
    assert "blends.all: sequence 4096 is longer than the 1024 positions" in error
    assert "write sequence: 1024" in error
    config["blends"]["all"]["sequence"] = 1024
    assert settings.load(config)


def test_rows_of_the_recipe_are_fitted_to_the_decoder_and_to_the_images(tmp_path: Path):
    short = two_names(tmp_path, language=decoder(tmp_path / "short", max_position_embeddings=512))
    assert settings.load(short).blends["mine"].sequence == 512
    few = two_names(tmp_path / "1", language=decoder(tmp_path / "few", max_position_embeddings=32768))
    assert settings.load(few).blends["mine"].sequence == 8 * 16 + 480
    long = decoder(tmp_path / "long", max_position_embeddings=32768)
    many = two_names(tmp_path / "2", language=long, vision=encoder(tmp_path / "fine", image_size=384))
    assert settings.load(many).blends["mine"].sequence == 8 * 576 + 480
