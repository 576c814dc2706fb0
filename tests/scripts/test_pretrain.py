"""The miniature's bases are ordinary folders, made the same way each time, and clear of held-out images."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from model.template import Template
from scripts.common.files import bytes_sha256
from scripts.config.miniature import MiniatureConfig
from scripts.config.pretrain import PretrainLanguageConfig, PretrainTokenizerConfig, PretrainVisionConfig
from scripts.pretraining.language import make_language
from scripts.pretraining.tokenizer import make_tokenizer
from scripts.pretraining.vision import _labels, make_vision
from scripts.synthetic.language import ask
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import Object, draw_scene, jpeg, render

WORLD = MiniatureConfig(seed=3)
VISION = PretrainVisionConfig(scenes=64, steps=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(PretrainTokenizerConfig(), WORLD, folder)
    return folder


def _hashes(folder):
    return {path.name: bytes_sha256(path.read_bytes()) for path in folder.iterdir()}


def test_any_text_survives_and_the_miniatures_words_are_one_token(tokenizer):
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    for text in ("Grüße, 図形 \n\t¿?", "What is at the top-left of image 2?"):
        assert loaded.decode(loaded(text, add_special_tokens=False).input_ids) == text
    asked = ask(draw_scene(RandomStream(1), WORLD), "what", RandomStream(2), WORLD)
    assert len(loaded(asked.text).input_ids) <= len(asked.text.split()) + 1
    assert len(loaded(Template().question_header).input_ids) <= 3
    assert loaded.convert_tokens_to_ids("<image>") != loaded.unk_token_id


def test_the_tokenizer_is_the_same_each_time(tokenizer, tmp_path):
    make_tokenizer(PretrainTokenizerConfig(), WORLD, tmp_path)
    assert _hashes(tokenizer) == _hashes(tmp_path)


def test_the_encoder_is_an_ordinary_folder_and_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        make_vision(VISION, WORLD, set(), tmp_path / name)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    CLIPVisionModel.from_pretrained(tmp_path / "a")
    AutoImageProcessor.from_pretrained(tmp_path / "a", backend="pil")


def test_a_scene_that_equals_a_held_out_image_is_left_out(tmp_path):
    draw = RandomStream(VISION.seed, "encoder", 5)
    image = render(draw_scene(draw, WORLD), draw, WORLD.image_size)
    facts = make_vision(VISION, WORLD, {bytes_sha256(jpeg(image))}, tmp_path)
    assert facts["left_out"] == 1


def test_every_patch_is_labelled_with_what_its_quarter_holds():
    scene = (Object(1, "square", "blue", ""), Object(2, "circle", "red", "large"))
    assert _labels(scene, 2) == [(0, 0, 0, 0), (1, 2, 3, 0), (2, 1, 1, 2), (3, 0, 0, 0)]
    cells = [label[0] for label in _labels(scene, 4)]
    assert cells == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


def test_the_language_model_learns_from_text_and_is_the_same_each_time(tokenizer, tmp_path):
    settings = PretrainLanguageConfig(steps=4, batch=4, layers=1, width=32)
    first = make_language(settings, WORLD, tokenizer, tmp_path / "a")
    make_language(settings, WORLD, tokenizer, tmp_path / "b")
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    longer = make_language(settings.model_copy(update={"steps": 60}), WORLD, tokenizer, tmp_path / "c")
    assert longer["loss"] < first["loss"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a").config.tie_word_embeddings


def test_the_program_writes_a_manifest_of_every_file(tmp_path, monkeypatch):
    from scripts import pretrain

    (tmp_path / "split").mkdir()
    pq.write_table(pa.table({"sha256": pa.array([], pa.string())}), tmp_path / "split/heldout.parquet")
    settings = json.dumps({"scenes": 20, "steps": 1, "batch": 4})
    out = tmp_path / "vision"
    arguments = ["pretrain", "vision", "--world", "{}", "--settings", settings, "--split", str(tmp_path / "split")]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(out)])
    pretrain.main()
    files = json.loads((out / "manifest.json").read_text())["files"]
    assert files == {name: digest for name, digest in _hashes(out).items() if name != "manifest.json"}
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= set(files)
