"""A folder that carries its code loads where this project is not, and answers the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from model.remote_code import save_with_code
from tests.tiny_models import make_model

PROGRAM = """
import json, sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert not any(name.split(".")[0] in ("model", "scripts", "tests") for name in sys.modules)
batch = processor("What is <image>?", [Image.new("RGB", (40, 30), "red")])
tokens = model.generate(**batch, max_new_tokens=6, do_sample=False)
model.save_pretrained(sys.argv[2])
processor.save_pretrained(sys.argv[2])
print(json.dumps({"tokens": tokens.tolist(), "attention": model.config.attention, "layers": model.num_parameters()}))
"""


@pytest.mark.parametrize(("attention", "projector"), [("mmca", "linear"), ("causal", "perceiver")])
def test_a_folder_with_code_needs_no_repository(tmp_path, attention, projector):
    options = {"projector": projector, "projector_queries": 4}
    original = make_model(tmp_path / "made", attention=attention, **options)
    model = VisualChatForConditionalGeneration.from_pretrained(original)
    processor = VisualChatProcessor.from_pretrained(original)
    save_with_code(model, processor, tmp_path / "folder")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    folders = [str(tmp_path / "folder"), str(tmp_path / "again")]
    command = [sys.executable, "-c", PROGRAM, *folders]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout.splitlines()[-1])

    batch = processor("What is <image>?", [Image.new("RGB", (40, 30), "red")])
    tokens = model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert output["tokens"] == tokens.tolist() and output["attention"] == attention
    for name in ("model.safetensors", "modeling.py", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    # The repository's own classes load such a folder too, and saving elsewhere brings no code along.
    again = VisualChatForConditionalGeneration.from_pretrained(tmp_path / "folder")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    model.save_pretrained(tmp_path / "bare")
    assert not list((tmp_path / "bare").glob("*.py"))
