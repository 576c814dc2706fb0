"""Forgetting: an unchanged model has not drifted; the drift is that of plain transformers; answers are shared."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from scripts import forgetting
from scripts.config.model import ModelConfig
from scripts.config.tokens import TokensConfig
from scripts.evaluation.forgetting import CLOSE, DRIFTED, FORGOTTEN, PROMPTS, SAME, text_prompts, verdict
from scripts.evaluation.forgetting_summary import drift_of
from scripts.inference.model_assembly import load_model, make_model
from scripts.inference.replay_prompts import project_prompts
from tests.blends import write_blend
from tests.tiny_models import IMAGE_TOKENS, make_bases


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """A results root with models/tiny, a held-out blend, and two exported models: unchanged, and with other weights."""
    root = tmp_path_factory.mktemp("root")
    bases = make_bases(root / "bases", large_weights=True)
    settings = ModelConfig(vision="tiny", language="tiny", tokens="tiny")
    tokens = TokensConfig(tokenizer="tiny", image_tokens=IMAGE_TOKENS, template="paper")
    make_model(settings, tokens, {kind: str(path) for kind, path in bases.items()}, root, root / "models/tiny")
    write_blend(root / "heldout", 24, bases["tokenizer"], stem="heldout", shards=1)
    for attention in ("mmca", "causal", "dattn"):
        model, processor = load_model(root / "models/tiny", root, attention)
        with torch.no_grad():
            # What a frozen decoder leaves to be trained.
            for parameter in model.projector.parameters():
                parameter += 0.5
        save(model, processor, root / f"exported/{attention}/final")
    with torch.no_grad():
        model.language_model.model.layers[1].mlp.down_proj.weight[:] *= 1.2
    save(model, processor, root / "exported/changed/final")
    return root


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def run(root: Path, name: str, *more) -> dict:
    out = root / f"evaluate/{name}/forgetting.json"
    words = ["--name", name, "--model", root / "models/tiny", "--exported", root / f"exported/{name}/final"]
    words += ["--heldout", root / "heldout", "--root", root, "--cache", root / "cache", "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["forgetting", *map(str, words), "--max-new-tokens", "24", *more])
        forgetting.main()
    return json.loads(out.read_text())


@pytest.mark.parametrize("attention", ["mmca", "causal", "dattn"])
def test_a_frozen_decoder_says_exactly_what_it_said(setup, attention):
    result = run(setup, attention)
    assert result["verdict"] == SAME and result["same"] == len(result["prompts"]) == len(text_prompts())
    assert all(row["before"] == row["after"] for row in result["prompts"])
    for row in (result["answers"]["before"], result["answers"]["after"], *result["own"].values()):
        assert row["kl"]["value"] == 0.0 and row["kl"]["interval"] == [0.0, 0.0]
        assert row["before"] == row["after"]


def test_answers_and_drift_are_those_of_plain_transformers(setup):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run(setup, "changed")
    assert result["answers"]["before"]["kl"]["value"] > 0 and result["same"] < len(result["prompts"])
    plain = AutoModelForCausalLM.from_pretrained(setup / "bases/language")
    tokenizer = AutoTokenizer.from_pretrained(setup / "bases/tokenizer")
    changed = AutoModelForCausalLM.from_pretrained(setup / "bases/language")
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight[:] *= 1.2

    def ids_of(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for row in result["prompts"]:
        pieces = ["### Question:\n", row["prompt"], "\n\n### Answer:\n"]
        prompt = [tokenizer.bos_token_id, *(token for piece in pieces for token in ids_of(piece))]
        for side, model in (("before", plain), ("after", changed)):
            whole = model.generate(
                torch.tensor([prompt]), max_new_tokens=24, do_sample=False, suppress_tokens=None, pad_token_id=0
            )[0]
            answer = whole[len(prompt) :]
            assert row[side]["tokens"] == len(answer)
            assert row[side]["text"] == tokenizer.decode(answer, skip_special_tokens=True).strip()
            with torch.inference_mode():
                logits = [each(whole[None]).logits[0, len(prompt) - 1 : -1] for each in (plain, changed)]
                p, q = (F.log_softmax(each.double(), -1) for each in logits)
            likelihood = {k: v.gather(1, answer[:, None]).sum().item() for k, v in (("before", p), ("after", q))}
            assert row[side]["log_likelihood"] == pytest.approx(likelihood, rel=1e-4)
            assert row[side]["kl"] == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-3, abs=1e-5)


def test_the_text_of_held_out_conversations_is_read_without_images(setup):
    result = run(setup, "changed")
    own = result["own"]
    assert own["questions"]["kl"]["value"] > 0 < own["answers"]["kl"]["value"]
    assert own["answers"]["kl"]["texts"] > 10 and own["questions"]["kl"]["interval"][0] > 0
    assert run(setup, "changed", "--without", "llava", "llava_dial")["own"] is None
    fewer = run(setup, "changed", "--without", "llava")["own"]["answers"]["kl"]["texts"]
    assert 0 < fewer < own["answers"]["kl"]["texts"]


def test_answers_before_training_are_computed_once_for_all_runs(setup, monkeypatch):
    run(setup, "mmca")
    files = list((setup / "cache").glob("*.jsonl"))
    assert len(files) == 1
    lines = files[0].read_text()
    run(setup, "causal")
    assert files[0].read_text() == lines
    # The cache counts, and not a second computation that gives the same.
    damaged = [json.loads(line) for line in lines.splitlines()]
    for entry in damaged[1:]:
        entry["outputs"] = [[ids[:3], False] for ids, _ in entry["outputs"]]
        del entry["sha256"]
    from scripts.common.files import canonical_json, text_sha256

    whole = [damaged[0], *(entry | {"sha256": text_sha256(canonical_json(entry))} for entry in damaged[1:])]
    whole[0] = json.loads(lines.splitlines()[0])
    text = [lines.splitlines()[0], *(json.dumps(entry, ensure_ascii=False) for entry in whole[1:])]
    files[0].write_text("\n".join(text) + "\n")
    assert all(row["before"]["tokens"] <= 3 for row in run(setup, "dattn")["prompts"])
    shutil.rmtree(setup / "cache")


def test_verdicts_go_by_the_drift():
    assert verdict(24, 24, 0.0) == SAME and verdict(23, 24, 0.0) == CLOSE == verdict(24, 24, 0.04)
    assert verdict(0, 24, 0.2) == DRIFTED and verdict(0, 24, 0.31) == FORGOTTEN


def test_prompts_are_not_among_those_of_replay():
    def words(text):
        return "".join(letter for letter in text.lower() if letter.isalnum() or letter == " ")

    asked = {words(text) for prompt in project_prompts() for text in prompt}
    measured = [words(prompt.text) for prompt in text_prompts()]
    assert len(measured) == len(set(measured)) == 24 and not asked & set(measured)
    assert list(yaml.safe_load(PROMPTS.read_text())) == list(dict.fromkeys(prompt.group for prompt in text_prompts()))


def test_the_provenance_of_a_run_holds_the_drift(setup):
    result = run(setup, "changed")
    held = drift_of(result)
    assert held["kl_per_token"]["answers"] == result["answers"]["before"]["kl"]
    assert held["kl_per_token"]["own questions"] == result["own"]["questions"]["kl"]
    assert (held["verdict"], held["same"], held["prompts"]) == (result["verdict"], result["same"], 24)
