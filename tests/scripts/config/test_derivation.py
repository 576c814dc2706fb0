"""What a configuration leaves out about its models is derived from their files."""

import copy
import json
import re
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.config import base_facts, machine, settings
from scripts.inspection.explanation import explanation
from tests.scripts.config.configurations import OWN, decoder, encoder, refused, two_names, written

CLIP = "openai/clip-vit-large-patch14"
LLAMA = "meta-llama/Llama-2-7b-hf"


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


def test_replay_and_what_a_blend_samples_are_explained(tmp_path: Path):
    config = two_names(tmp_path)
    set_chat_template(config, "{{ messages }}")
    table = explanation(settings.explained(copy.deepcopy(config)))
    assert re.search(r"blend first\n(  .*\n)*  datasets +pets \(samples: 0\.5\) +recipes/own-real\.yaml", table)
    assert re.search(r"replay decoder-answers\n  model +mine +recipes/own-real\.yaml\n  prompts +those of this", table)
    set_chat_template(config, "")
    table = explanation(settings.explained(config))
    assert "decoder-answers" not in table


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
    table = explanation(settings.explained(copy.deepcopy(config)))
    assert re.search(r"evaluate\n  threads  8  derived: this machine has no GPU, and 8 cores", table)
    environment = {"VISUALCHAT_PLANNED_ON": json.dumps(planned), "CUDA_VISIBLE_DEVICES": ""}
    machine.plan_here(environment)
    assert machine.planning_machine(environment) == machine.planning_machine({"CUDA_VISIBLE_DEVICES": ""})


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


def test_rows_of_the_recipe_are_fitted_to_the_decoder_and_to_the_images(tmp_path: Path):
    short = two_names(tmp_path, language=decoder(tmp_path / "short", max_position_embeddings=512))
    assert settings.load(short).blends["mine"].sequence == 512
    few = two_names(tmp_path / "1", language=decoder(tmp_path / "few", max_position_embeddings=32768))
    assert settings.load(few).blends["mine"].sequence == 8 * 16 + 480
    long = decoder(tmp_path / "long", max_position_embeddings=32768)
    many = two_names(tmp_path / "2", language=long, vision=encoder(tmp_path / "fine", image_size=384))
    assert settings.load(many).blends["mine"].sequence == 8 * 576 + 480
