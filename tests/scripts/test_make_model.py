"""A model's folder: small, the same each time, and joined with exactly the bases it was made from."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from scripts.blending.tokens_identity import load_tokenizer, template_of, tokens_identity
from scripts.common.errors import UserError
from scripts.config.model import ModelConfig
from scripts.config.tokens import TokensConfig
from scripts.inference.base_folders import find_base
from scripts.inference.model_assembly import load_model, make_model
from tests.preload import client as preload
from tests.runs import REPOSITORY
from tests.tiny_models import IMAGE_TOKENS, make_bases

KINDS = ("vision", "language", "tokenizer")
SETTINGS = ModelConfig(vision="tiny", language="tiny", tokens="tiny")
TOKENS = TokensConfig(tokenizer="tiny", image_tokens=IMAGE_TOKENS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_bases(tmp_path / "root/bases")
    return tmp_path / "root"


def make(root: Path, name: str = "tiny", settings: ModelConfig = SETTINGS, tokens: TokensConfig = TOKENS) -> Path:
    bases = {kind: str(root / "bases" / kind) for kind in KINDS}
    make_model(settings, tokens, bases, root, root / "models" / name)
    return root / "models" / name


def test_the_program_writes_a_folder_that_loads_with_any_attention(root: Path):
    command = [
        sys.executable,
        "-m",
        "scripts.make_model",
        "--settings",
        SETTINGS.rerun_key(),
        "--tokens",
        TOKENS.rerun_key(),
    ]
    for kind in KINDS:
        command += [f"--{kind}", str(root / "bases" / kind)]
    command += ["--root", str(root), "--out", str(root / "models/tiny")]
    preload.run(command, cwd=REPOSITORY, check=True)
    manifest = json.loads((root / "models/tiny/manifest.json").read_text())
    assert {kind: base["path"] for kind, base in manifest["bases"].items()} == {kind: f"bases/{kind}" for kind in KINDS}
    assert not list((root / "models/tiny").glob("model*.safetensors")), "weights of the bases were copied"
    for attention in ("mmca", "causal", "dattn"):
        model, processor = load_model(root / "models/tiny", root, attention)
        assert model.config.attention == attention and processor.image_tokens == IMAGE_TOKENS
    bases = AutoModelForCausalLM.from_pretrained(root / "bases/language").state_dict()
    assert all(torch.equal(model.language_model.state_dict()[name], value) for name, value in bases.items())


def test_a_model_gets_the_chat_template_of_its_tokenizer(root: Path):
    tokens = TOKENS.model_copy(update={"template": "chat"})
    with pytest.raises(UserError, match=r"the tokenizer has no chat template.*`template: paper`"):
        make(root, tokens=tokens)
    tokenizer = load_tokenizer(str(root / "bases/tokenizer"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer.save_pretrained(root / "bases/tokenizer")
    folder = make(root, tokens=tokens)
    _, processor = load_model(folder, root, "mmca")
    assert processor.template == template_of(tokens, tokenizer) and processor.template.images == "inline"
    identity = tokens_identity(tokenizer, processor.template, IMAGE_TOKENS)
    assert json.loads((folder / "manifest.json").read_text())["tokens_identity"] == identity


def test_two_builds_are_equal_and_the_seed_matters(root: Path):
    one, two = make(root, "one"), make(root, "two")
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, two))
    assert first == second
    other = make(root, "other", SETTINGS.model_copy(update={"seed": 1}))
    assert (other / "projector.safetensors").read_bytes() != (one / "projector.safetensors").read_bytes()


def test_a_moved_root_still_loads_and_a_changed_base_is_refused(root: Path):
    folder = make(root)
    moved = root.rename(root.with_name("moved"))
    folder = moved / folder.relative_to(root)
    load_model(folder, moved, "mmca")
    config = moved / "bases/language/config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(UserError, match=r"bases/language has changed since .* make the model again"):
        load_model(folder, moved, "mmca")
    load_model(folder, moved, "mmca", check=False)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_part_of_the_model(root: Path, tied: bool):
    language = AutoModelForCausalLM.from_pretrained(root / "bases/language")
    language.config.tie_word_embeddings = tied
    language.resize_token_embeddings(language.config.vocab_size - 1)
    shutil.rmtree(root / "bases/language")
    language.save_pretrained(root / "bases/language")
    if not tied:
        language = AutoModelForCausalLM.from_pretrained(root / "bases/language", tie_word_embeddings=False)
        language.lm_head.weight = torch.nn.Parameter(language.lm_head.weight.detach().clone())
        language.save_pretrained(root / "bases/language")
    folder = make(root)
    torch.manual_seed(1)
    one, _ = load_model(folder, root, "mmca")
    torch.manual_seed(2)
    two, _ = load_model(folder, root, "mmca")
    assert one.get_input_embeddings().num_embeddings == language.config.vocab_size + 1
    assert (one.get_input_embeddings().weight is one.get_output_embeddings().weight) == tied
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_what_cannot_be_joined_is_one_clear_error(root: Path):
    with pytest.raises(UserError, match=f"makes {IMAGE_TOKENS} tokens of an image, but tokens.tiny counts 17"):
        make(root, tokens=TOKENS.model_copy(update={"image_tokens": 17}))
    config = json.loads((root / "bases/language/config.json").read_text())
    (root / "bases/language/config.json").write_text(json.dumps(config | {"attention_chunk_size": 8}))
    with pytest.raises(UserError, match=r"cannot be joined: .*attention_chunk_size"):
        make(root)
    assert not (root / "models/tiny").exists()


def test_a_base_that_is_nowhere_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_base("bases/vision", root) == root / "bases/vision"
    with pytest.raises(UserError, match="'no/such-model' is neither a folder"):
        find_base("no/such-model", root)
    with pytest.raises(UserError, match=r"'../../no such' is neither a folder"):
        find_base("../../no such", root)
