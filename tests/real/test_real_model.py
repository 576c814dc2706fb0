"""A real language model through the whole graph: aligned, tuned with adapters, evaluated, asked, served and exported.

The model is small, the pictures are few and the miniature's encoder has seen no photograph: what is tested is that a
real decoder learns and keeps what it knew, not that it sees.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_loading import load_model
from scripts.training.dataset import MicroBatchDataset
from tests.real.conftest import LANGUAGE, QLORA, RealModel
from tests.workflow.project import ROOT

PROMPTS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Write one sentence about the sea.",
    "How many days does a week have?",
    "Translate 'good morning' into French.",
)
LENGTH = 24
needs_bitsandbytes = pytest.mark.skipif(not QLORA, reason="bitsandbytes is not installed")

# Nothing of this project may be importable there.
RELOAD = """
import json, sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert not any(name.split(".")[0] in ("model", "scripts", "tests") for name in sys.modules)
with torch.no_grad():
    logits = model(**processor("What is in <image>?", [Image.open(sys.argv[2])])).logits
torch.save(logits, sys.argv[3])
"""


@pytest.fixture(scope="session")
def base():
    """The plain decoder and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(LANGUAGE).eval(), AutoTokenizer.from_pretrained(LANGUAGE)


@pytest.fixture(scope="session")
def base_answers(base) -> list[torch.Tensor]:
    """Prompt and greedy answer of the plain decoder, one (T,) for every prompt."""
    model, tokenizer = base
    answers = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        batch = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answers.append(model.generate(**batch, max_new_tokens=LENGTH, do_sample=False)[0])
    return answers


def answer(model, processor, prompt: str) -> torch.Tensor:
    """Prompt and greedy answer of a VisualChat model, (T,)."""
    return model.generate(**processor(prompt), max_new_tokens=LENGTH, do_sample=False)[0]


def drift(model, base, answers: list[torch.Tensor]) -> float:
    """Mean KL divergence of a model from the plain decoder on the answers of that, in nats per token."""
    total = count = 0.0
    with torch.no_grad():
        for tokens in answers:
            ids = tokens[None]
            expected = base(ids).logits[0, -LENGTH:].log_softmax(-1)
            found = model(input_ids=ids).logits[0, -LENGTH:, : expected.shape[-1]].log_softmax(-1)
            total += float((expected.exp() * (expected - found)).sum())
            count += len(expected)
    return total / count


def heldout_loss(real: RealModel, model, processor) -> float:
    """Mean cross-entropy of a held-out label."""
    reader = BlendReader(real.root / "blend/photographs/heldout", real.root)
    losses = []
    with torch.no_grad():
        for batch in MicroBatchDataset([reader], processor, model.layout_options(), global_batch=1, micro_batch=1):
            names = ("input_ids", "labels", "modality", "pixel_values", "document_ids")
            tensors = {name: batch.tensors[name] for name in names if name in batch.tensors}
            losses.append(model.token_losses(**tensors)[0])
    return float(torch.cat(losses).mean())


def test_every_stage_learns_and_is_evaluated(real: RealModel):
    for run in real.project_runs():
        curve = real.finished(run)["curve"]
        assert curve["last_loss"] < curve["first_loss"], run
        assert json.loads((real.root / "evaluate" / run / "metrics.json").read_text())
    assert real.finished("tune")["start"]["stages"][0]["run"] == "align"
    # Aligned first: what follows begins where that ended.
    first, last = real.finished("tune")["curve"]["heldout"][0][1], real.finished("align")["curve"]["heldout"][-1][1]
    assert first == pytest.approx(last, rel=1e-4)


def test_frozen_it_answers_questions_without_pictures_as_before(real: RealModel, base_answers):
    model, processor = load_model(real.root / "exported/align/final", "cpu")
    for prompt, expected in zip(PROMPTS, base_answers, strict=True):
        assert torch.equal(answer(model, processor, prompt), expected), prompt


@pytest.mark.parametrize("run", ["tune", pytest.param("qlora", marks=needs_bitsandbytes)])
def test_adapters_change_its_answers_little(real: RealModel, base, base_answers, run: str):
    model, processor = load_model(real.root / "exported" / run / "final", "cpu")
    found = [answer(model, processor, prompt) for prompt in PROMPTS]
    same = sum(torch.equal(one, two) for one, two in zip(found, base_answers, strict=True))
    kl = drift(model, base[0], base_answers)
    real.note(f"{run}: text answers", f"{same} of {len(PROMPTS)} identical to the base's, KL {kl:.4f} per token")
    # A fifth of a nat is far above what these few steps do, and far below a model that has lost its language.
    assert kl < 0.2


def test_plain_transformers_loads_the_export_and_computes_the_same(real: RealModel, tmp_path: Path):
    from PIL import Image

    folder, picture = real.root / "exported/tune/final", ROOT / "examples/images/cat.png"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RELOAD, str(folder), str(picture), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model, processor = load_model(folder, "cpu")
    with torch.no_grad():
        expected = model(**processor("What is in <image>?", [Image.open(picture)])).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-5, atol=1e-4)


def test_it_is_asked_at_the_terminal(real: RealModel):
    command = [sys.executable, "-m", "scripts.chat", "--model", str(real.root / "exported/tune/final")]
    command += ["--image", str(ROOT / "examples/images/cat.png"), "--max-new-tokens", "12"]
    done = subprocess.run(
        [*command, "--ask", "Which animal is this?"], cwd=real.project.folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    real.note("chat: Which animal is this? (cat.png)", done.stdout.strip())


def test_it_is_served(real: RealModel):
    folder = real.root / "exported/tune/final"
    command = [sys.executable, "-m", "scripts.serve", "--model", f"smol={folder}", "--port", "0"]
    server = subprocess.Popen(command, cwd=real.project.folder, stdout=subprocess.PIPE, text=True)
    try:
        ready = next(line for line in server.stdout if line.startswith("ready"))
        url = re.search(r"http://\S+", ready)[0].rstrip("/")
        messages = [{"role": "user", "content": PROMPTS[0]}]
        body = {"model": "smol", "messages": messages, "max_tokens": LENGTH, "temperature": 0}
        reply = requests.post(f"{url}/v1/chat/completions", json=body, timeout=300)
        assert reply.status_code == 200, reply.text
        text = reply.json()["choices"][0]["message"]["content"]
        assert text.strip()
        real.note(f"server: {PROMPTS[0]}", text.strip())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


@needs_bitsandbytes
def test_in_4_bits_it_is_the_model_that_was_trained_and_merged_it_is_near(real: RealModel):
    trained = real.finished("qlora")["curve"]["heldout"][-1][1]
    folder = real.root / "exported/qlora/final"
    packed, processor = load_model(folder, "cpu", bits=4)
    assert heldout_loss(real, packed, processor) == pytest.approx(trained, rel=1e-4)
    real.note("qlora: held-out loss as trained, in 4 bits", f"{trained:.4f}")
    del packed
    merged, processor = load_model(folder, "cpu")
    loss = heldout_loss(real, merged, processor)
    real.note("qlora: held-out loss merged into the original weights", f"{loss:.4f}")
    assert loss == pytest.approx(trained, rel=0.1)
