"""Training as a whole: killed in every way, on one rank or two, refused, and hopeless. Every run here is a real one."""

import dataclasses
import importlib.util
import json
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.processing import VisualChatProcessor
from scripts.config.model import ModelConfig
from scripts.config.tokens import TokensConfig
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import make_model
from tests.blends import write_blend
from tests.preload import client as preload
from tests.runs import STEPS, TrainingSetup, finished, lines_written, metrics, state_of, wait_until
from tests.tiny_models import IMAGE_TOKENS


def family(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; in a container dead ones may remain as zombies."""
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def wait_for_death(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 20
    while alive(processes):
        assert time.monotonic() < deadline, f"{alive(processes)} outlived their run"
        time.sleep(0.01)


def test_a_run_leaves_what_the_next_steps_need(undisturbed: Path):
    result = finished(undisturbed)
    assert result["steps"] == STEPS and result["final"]["step"] == STEPS
    steps = [line["step"] for line in metrics(undisturbed) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    measured = {line["step"]: line["heldout_loss"] for line in metrics(undisturbed) if "heldout_loss" in line}
    assert list(measured) == [0, 5, 10, 13, 15, 20, 25, 26]
    best = min((step for step in measured if step), key=measured.get)
    assert (result["best"]["step"], result["best"]["heldout_loss"]) == (best, measured[best])
    assert result["curve"]["last_loss"] < 0.7 * result["curve"]["first_loss"]
    for which in ("final", "best"):
        weights = load_file(undisturbed / result[which]["weights"])
        assert any(name.startswith("projector.") for name in weights)
        assert not any(name.startswith("vision_tower.") for name in weights)


def test_killed_again_and_again_it_ends_with_the_same_losses_and_weights(lab: TrainingSetup, undisturbed: Path):
    out = lab.root / "train/disturbed"

    # One rank alone, as a machine without memory would do it: the others must not wait for it.
    # Started as a user does, since a rank is known by its variables in /proc; those below are preloaded.
    process = lab.start(out, preloaded=False)
    wait_until(process, lambda: lines_written(out) >= 7)
    victims = family(process.pid)
    next(victim for victim in victims if "RANK" in victim.environ()).kill()
    output = process.communicate()[1]
    assert process.returncode == 1 and "ended without an error message" in output and "Traceback" not in output
    wait_for_death(victims)

    # The whole tree while a checkpoint is being written (or just after), and a half-written one left behind.
    process = lab.start(out)
    wait_until(process, lambda: list(out.glob("state/*/checkpoints/.step-*")) or lines_written(out) >= 12)
    victims = family(process.pid)
    for victim in reversed(victims):
        victim.kill()
    process.wait()
    wait_for_death(victims)
    draft = state_of(out) / "checkpoints/.step-00000012"
    draft.mkdir(exist_ok=True)
    (draft / "state.safetensors").write_bytes(b"half")

    # The launcher alone: its ranks must follow it, and must not write on beside the next attempt's.
    process = lab.start(out)
    before = lines_written(out)
    wait_until(process, lambda: lines_written(out) >= max(before, 12) + 2)
    victims = family(process.pid)
    process.kill()
    process.wait()
    wait_for_death(victims)

    # The newest checkpoint is damaged, and the run is asked to stop.
    newest = max((state_of(out) / "checkpoints").glob("step-*"))
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "state.safetensors").write_bytes(content)
    process = lab.start(out)
    output = ""
    while "continuing after step" not in output:
        line = process.stderr.readline()
        assert line, f"the run ended too early: {output}"
        output += line
    before = lines_written(out)
    wait_until(process, lambda: lines_written(out) > before)
    process.send_signal(signal.SIGTERM)
    output += process.communicate()[1]
    assert process.returncode == 75, output
    assert "is damaged" in output and newest.name in output and "the same command continues" in output
    assert not (out / "finished.json").exists()

    status, output = lab.train(out)
    assert status == 0, output
    assert metrics(out) == metrics(undisturbed)
    assert finished(out) == finished(undisturbed)
    for which in ("final", "best"):
        path = finished(out)[which]["weights"]
        assert (out / path).read_bytes() == (undisturbed / path).read_bytes()
    assert not list((state_of(out) / "checkpoints").glob(".*"))


def test_a_run_whose_processes_are_forked_has_the_numbers_of_one_that_is_started(lab: TrainingSetup, undisturbed: Path):
    """All other tests rely on it: they fork what a user starts (`tests/preload`)."""
    out = lab.root / "train/forked"
    process = lab.start(out)
    output = process.communicate()[1]
    assert process.returncode == 0, output
    assert process.preloaded == preload.available()
    assert metrics(out) == metrics(undisturbed) and finished(out) == finished(undisturbed)
    for which in ("final", "best"):
        path = finished(out)[which]["weights"]
        assert (out / path).read_bytes() == (undisturbed / path).read_bytes()


def test_one_rank_has_the_losses_of_two(lab: TrainingSetup, undisturbed: Path):
    out = lab.root / "train/one_rank"
    status, output = lab.train(out, ranks=1, micro_batch=3, workers=1)
    assert status == 0, output
    assert state_of(out).name == state_of(undisturbed).name, "ranks must not change the fingerprint"
    for one, two in zip(metrics(out), metrics(undisturbed), strict=True):
        for name in {"loss", "grad_norm", "heldout_loss"} & set(one):
            assert one[name] == pytest.approx(two[name], rel=1e-5)
        assert one["supervised_tokens"] == two["supervised_tokens"]


def test_packs_are_trained_on_killed_at_random_and_continued_by_another_number_of_ranks(
    lab: TrainingSetup, tmp_path: Path, chooser: random.Random
):
    """Every step stands once in the record, with the conversations that its packs hold."""
    tokenizer, identity = (
        lab.bases["tokenizer"],
        json.loads((lab.model / "manifest.json").read_text())["tokens_identity"],
    )
    options = {"pack": 3, "tokens_identity": identity}
    blends = [write_blend(tmp_path / f"epoch-{e}", 60, tokenizer, epoch=e, **options) for e in range(2)]
    packed = dataclasses.replace(lab, blends=blends)
    out = lab.root / "train/packed"
    settings = {"micro_batch": 2, "evaluate_every": 0, "checkpoint_every": 1}
    process = packed.start(out, **settings, ranks=2)
    # The record begins with step 0, and a step's checkpoint follows its line: after two more lines there is one.
    stop = chooser.randint(2, 6)
    wait_until(process, lambda: lines_written(out) > stop)
    victims = family(process.pid)
    process.kill()
    process.wait()
    wait_for_death(victims)
    status, output = packed.train(out, **settings, ranks=1)
    assert status == 0 and "continuing after step" in output, output
    steps = [line for line in metrics(out) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    readers = [BlendReader(folder, tmp_path) for folder in blends]
    for line in steps:
        reader, first = readers[line["epoch"]], 4 * ((line["step"] - 1) % 5)
        samples = [reader[c] for unit in range(first, first + 4) for c in reader.members(unit)]
        assert len(samples) == 12
        assert line["tokens"] == sum(sample.n_tokens for sample in samples)
        assert line["supervised_tokens"] == sum(sample.n_labels for sample in samples)
    other = [write_blend(tmp_path / f"other-{e}", 60, tokenizer, epoch=e, seed=1, **options) for e in range(2)]
    (state_of(out) / "finished.json").unlink()
    process = dataclasses.replace(lab, blends=other).start(out, **settings, ranks=1)
    wait_until(process, lambda: len(list(out.glob("state/*/checkpoints/step-*"))) > 2)
    process.kill()
    assert (
        "starts anew, beside the unfinished" in (output := process.communicate()[1]) and "seed was 0 and is 1" in output
    )


def test_a_finished_run_returns_at_once(lab: TrainingSetup, undisturbed: Path):
    log = (state_of(undisturbed) / "log.txt").read_bytes()
    (undisturbed / "finished.json").rename(undisturbed / "moved.json")
    status, output = lab.train(undisturbed, ranks=1)
    assert status == 0 and "finished already" in output
    assert (undisturbed / "finished.json").read_bytes() == (undisturbed / "moved.json").read_bytes()
    assert (state_of(undisturbed) / "log.txt").read_bytes() == log, "ranks were started for nothing"
    (undisturbed / "moved.json").unlink()


def poisoned(lab: TrainingSetup, token: int, folder: Path) -> Path:
    """A model whose embedding of one token is not a number, while its head is as before."""
    language = folder / "language"
    shutil.copytree(lab.bases["language"], language)
    weights = load_file(language / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = table.clone()
    table[token] = torch.nan
    save_file(weights, language / "model.safetensors", {"format": "pt"})
    config = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    names = {kind: str(path) for kind, path in (lab.bases | {"language": language}).items()}
    settings, tokens = (
        ModelConfig(vision="v", language="l", tokens="t"),
        TokensConfig(tokenizer="t", image_tokens=IMAGE_TOKENS),
    )
    make_model(settings, tokens, names, lab.root, folder / "model")
    return folder / "model"


def test_a_loss_that_is_no_number_names_the_conversations_and_is_not_tried_twice(lab: TrainingSetup, tmp_path: Path):
    """The first global batch has four conversations, two a rank; those in which a certain token occurs are to blame."""
    processor, reader = VisualChatProcessor.from_pretrained(lab.model), BlendReader(lab.blends[0], lab.root)
    samples = [reader[position] for position in range(4)]
    special = set(processor.tokenizer.all_special_ids)
    texts = [set(processor.encode(sample.messages).input_ids[:-1]) - special for sample in samples]
    token = next(t for t in sorted(set.union(*texts)) if 0 < sum(t in text for text in texts) < 4)
    blamed = {uid for sample, text in zip(samples, texts, strict=True) if token in text for uid in sample.uids}

    out, model = lab.root / "train/poisoned", poisoned(lab, token, tmp_path)
    status, output = lab.train(lab.root / "train/poisoned_heldout", model=model)
    assert status == 1 and "held-out loss nan after step 0" in output and "give no finite number: llava" in output

    identity = json.loads((lab.model / "manifest.json").read_text())["tokens_identity"]
    options = {"shards": 1, "stem": "heldout", "tokens_identity": identity}
    nothing = write_blend(tmp_path / "heldout", 0, lab.bases["tokenizer"], **options)
    lab = dataclasses.replace(lab, heldout=nothing)
    status, output = lab.train(out, model=model)
    assert status == 1 and "Traceback" not in output
    assert "step 1: loss nan" in output and "learning_rate" in output
    found = output.strip().rsplit("these conversations give no finite number: ", 1)[1]
    assert set(found.split(", ")) == blamed
    log = (state_of(out) / "log.txt").read_bytes()
    status, output = lab.train(out, model=model)
    assert status == 1 and "recorded failure" in output and found in output
    assert (state_of(out) / "log.txt").read_bytes() == log
    assert not (out / "finished.json").exists()


def test_what_does_not_belong_together_is_refused_before_anything_starts(lab: TrainingSetup, tmp_path: Path):
    status, output = lab.train(tmp_path / "out", epochs=3)
    assert status == 1 and "3 epochs need as many --blend folders" in output
    status, output = lab.train(tmp_path / "out", model=lab.root / "models/none")
    assert status == 1 and "models/none" in output
    model = tmp_path / "model"
    shutil.copytree(lab.model, model)
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(manifest | {"tokens_identity": "other"}))
    status, output = lab.train(tmp_path / "out", model=model)
    assert status == 1 and "same entry of `tokens`" in output and "Traceback" not in output
    status, output = lab.train(tmp_path / "out", learning_rat=1e-3)
    assert status == 1 and "learning_rat" in output
    if importlib.util.find_spec("wandb") is None:
        status, output = lab.train(tmp_path / "out", trackers=["wandb"])
        assert status == 1 and "pip install wandb" in output and "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_one_clear_error(lab: TrainingSetup, tmp_path: Path):
    shard = lab.heldout / "heldout-00000-of-00001.tar"
    shard.rename(tmp_path / "away.tar")
    try:
        status, output = lab.train(tmp_path / "out", ranks=1)
    finally:
        (tmp_path / "away.tar").rename(shard)
    assert status == 1 and f"{shard} is missing" in output and "Traceback" not in output
    assert not (tmp_path / "out").exists(), "ranks were started for nothing"
