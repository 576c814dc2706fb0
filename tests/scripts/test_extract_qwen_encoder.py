"""Taking Qwen-VL's encoder out of its model: every parameter exactly, no code of the source, one clear error."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from model.configuration import QwenVisionConfig
from model.modeling import VisualChatForConditionalGeneration
from model.qwen_vision import QwenVisionModel
from scripts.common.errors import UserError
from scripts.extract_qwen_encoder import PREFIX, extract
from tests.preload import client as preload
from tests.runs import REPOSITORY
from tests.tiny_models import make_bases

VISUAL = {"heads": 2, "image_size": 32, "layers": 2, "mlp_ratio": 2.04, "output_dim": 128, "patch_size": 8, "width": 32}
SMALL = {"image_size": 32, "patch_size": 8, "vit_width": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 65, "hidden_size": 128, "resampler_heads": 1}


@pytest.fixture(scope="module")
def encoder() -> QwenVisionModel:
    torch.manual_seed(0)
    model = QwenVisionModel(QwenVisionConfig(**SMALL))
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.normal_()
    return model.eval()


@pytest.fixture(params=["bin", "safetensors"])
def source(request, encoder, tmp_path) -> Path:
    """A whole model in the form of the published one: two files and an index, the encoder among other weights."""
    folder = tmp_path / "source"
    folder.mkdir()
    weights = {PREFIX + name: value.clone() for name, value in encoder.state_dict().items()}
    weights[f"{PREFIX}proj"] = torch.zeros(128, 128)
    weights["transformer.wte.weight"] = torch.zeros(7, 5)
    names, files = sorted(weights), {}
    stem, end = ("model", "safetensors") if request.param == "safetensors" else ("pytorch_model", "bin")
    for number, part in enumerate((names[::2], names[1::2], ["lm_head.weight"]), start=1):
        file = f"{stem}-0000{number}-of-00003.{end}"
        files |= dict.fromkeys(part, file)
        tensors = {name: weights.get(name, torch.zeros(1)) for name in part}
        (save_file if end == "safetensors" else torch.save)(tensors, folder / file)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": VISUAL}))
    return folder


def test_the_encoder_comes_out_whole_and_joins_a_decoder(source, encoder, tmp_path):
    # A file that holds nothing of the encoder is not opened.
    next(source.glob("*-00003-of-00003.*")).write_bytes(b"not needed")
    out = tmp_path / "encoder"
    command = [sys.executable, "-m", "scripts.extract_qwen_encoder", "--source", str(source), "--out", str(out)]
    preload.run(command, cwd=REPOSITORY, check=True)
    found = AutoModel.from_pretrained(out).eval()
    assert type(found) is QwenVisionModel and found.config.intermediate_size == 65
    assert {name: value.tolist() for name, value in found.state_dict().items()} == {
        name: value.tolist() for name, value in encoder.state_dict().items()
    }
    images = AutoImageProcessor.from_pretrained(out, backend="pil")
    assert list(images.image_mean) == [0.48145466, 0.4578275, 0.40821073] and not images.do_center_crop

    bases = make_bases(tmp_path / "bases")
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    model = VisualChatForConditionalGeneration.from_base_models(out, bases["language"], tokenizer)
    assert model.config.image_tokens == 256 and model.config.image_size == 32


def change_index(folder: Path, change) -> None:
    path = next(folder.glob("*.index.json"))
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


def test_what_is_not_exactly_the_encoder_is_refused(source, tmp_path):
    names = sorted(json.loads(next(source.glob("*.index.json")).read_text())["weight_map"])
    change_index(source, lambda files: files.pop(f"{PREFIX}ln_pre.weight"))
    with pytest.raises(UserError, match=r"parameters missing: ln_pre.weight"):
        extract(str(source), tmp_path / "out")
    wanted = next(name for name in names if name.startswith(PREFIX))
    change_index(source, lambda files: files.update({wanted: "elsewhere.bin"}))
    with pytest.raises(UserError, match=r"elsewhere.bin is missing"):
        extract(str(source), tmp_path / "out")
    (source / "config.json").write_text(json.dumps({"visual": VISUAL | {"width": 64}}))
    change_index(source, lambda files: files.clear())
    with pytest.raises(UserError, match=r"parameters missing: .* more"):
        extract(str(source), tmp_path / "out")
    (source / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no section 'visual'"):
        extract(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_shape_or_an_unknown_parameter_is_refused(encoder, tmp_path):
    weights = {PREFIX + name: value for name, value in encoder.state_dict().items()}
    (tmp_path / "config.json").write_text(json.dumps({"visual": VISUAL}))
    for change, words in (
        ({f"{PREFIX}ln_pre.weight": torch.zeros(3)}, r"of another shape: ln_pre.weight is \(3,\), not \(32,\)"),
        ({f"{PREFIX}extra": torch.zeros(3)}, "unknown: extra"),
    ):
        save_file(weights | change, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=words):
            extract(str(tmp_path), tmp_path / "out")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the source has no weights"):
        extract(str(tmp_path), tmp_path / "out")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"visual": VISUAL}))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({f"{PREFIX}proj": Harmful()}))
    with pytest.raises(UserError, match="no plain file of tensors"):
        extract(str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "harm").exists()


def test_a_name_that_is_nowhere_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'no/such-model' is"):
        extract("no/such-model", tmp_path / "out")
