"""Replay: rows are the answers of the plain decoder in its chat form; a killed program goes on; prompts are chosen."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from scripts.common.errors import UserError
from scripts.common.files import write_table
from scripts.common.records import ImageRef, Record, Round, named_slot, shown_slot, to_batch
from scripts.config.replay import ReplayConfig
from scripts.config.tokens import TokensConfig
from scripts.inference.replay_prompts import (
    choose,
    project_prompts,
    prompts_of_file,
    questions_of_records,
    text_alone,
)
from scripts.replay import replay
from tests.tiny_models import make_bases

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [f"What is on the left of shape {number}?" for number in range(70)]
TOKENS = TokensConfig(tokenizer="tiny", image_tokens=16, template="paper")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return make_bases(tmp_path_factory.mktemp("bases"), large_weights=True)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": text} for text in PROMPTS] + [{"prompt": ["Which image?", "How many?"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(prompts, **changes):
    return ReplayConfig(model="m", prompts=str(prompts), **{"max_new_tokens": 60, "temperature": 1.5} | changes)


def made(settings, bases, out):
    manifest = replay(settings, TOKENS, str(bases["language"]), str(bases["tokenizer"]), out, None, out)
    return manifest, [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_scaled_positions_count_as_positions(bases, prompts, tmp_path):
    language = tmp_path / "language"
    shutil.copytree(bases["language"], language)
    config = json.loads((language / "config.json").read_text()) | {"max_position_embeddings": 64}
    (language / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="longer than the decoder reads"):
        made(settings(prompts, samples=20), bases | {"language": language}, tmp_path / "short")
    scaled = {"rope_parameters": {"rope_type": "linear", "factor": 16.0, "rope_theta": 10000.0}}
    (language / "config.json").write_text(json.dumps(config | scaled))
    manifest, _ = made(settings(prompts, samples=20), bases | {"language": language}, tmp_path / "long")
    assert manifest["rows"] and "longer than the decoder reads" not in manifest["unanswered"]


def test_rows_are_what_the_plain_decoder_answers(bases, prompts, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    decoder = AutoModelForCausalLM.from_pretrained(bases["language"])
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    # A decoder that closes its answers: its most likely token is the end of an answer after a few steps.
    manifest, rows = made(settings(prompts, temperature=0.0, max_new_tokens=200), bases, tmp_path)
    assert rows and manifest["rows"] == len(rows)
    assert manifest["rows"] + sum(manifest["unanswered"].values()) >= len(PROMPTS) + 1
    for row in rows[:5]:
        question, answer = (message["content"] for message in row["messages"][:2])
        # Separately, as training does it (see model/template.py).
        pieces = ["### Question:\n", question, "\n\n### Answer:\n"]
        tokens = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
        ids = [tokenizer.bos_token_id, *(token for piece in tokens for token in piece)]
        whole = decoder.generate(torch.tensor([ids]), max_new_tokens=200, do_sample=False)[0, len(ids) :]
        assert whole[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(whole, skip_special_tokens=True).strip() == answer


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(bases, prompts, tmp_path):
    first, rows = made(settings(prompts), bases, tmp_path / "a")
    assert len(rows) > 5
    assert made(settings(prompts), bases, tmp_path / "b")[0] == first
    assert made(settings(prompts, seed=1), bases, tmp_path / "c")[0]["files"] != first["files"]
    assert not (tmp_path / "a/.answers.jsonl").exists()


def test_cut_off_answers_are_left_out_and_counted(bases, prompts, tmp_path):
    manifest, _ = made(settings(prompts, max_new_tokens=8), bases, tmp_path)
    assert manifest["unanswered"]["cut off by max_new_tokens"] > manifest["rows"] > 0
    with pytest.raises(UserError, match=r"has finished none of 71 answers \(.*Raise `max_new_tokens`"):
        made(settings(prompts, max_new_tokens=1, temperature=0.0), bases, tmp_path / "none")


def test_a_killed_program_goes_on_with_the_same_result(bases, prompts, tmp_path):
    expected, _ = made(settings(prompts), bases, tmp_path / "whole")
    text = settings(prompts).model_dump_json()
    command = [sys.executable, "-m", "scripts.replay", "--settings", text, "--tokens", TOKENS.model_dump_json()]
    command += ["--language", str(bases["language"]), "--tokenizer", str(bases["tokenizer"]), "--out"]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, str(killed)], cwd=ROOT, stderr=subprocess.DEVNULL)
    answers = killed / ".answers.jsonl"
    while process.poll() is None and not (answers.exists() and answers.read_bytes().count(b"\n") > 1):
        pass
    process.kill()
    process.wait()
    done = answers.read_bytes().count(b"\n") if answers.exists() else 0
    subprocess.run([*command, str(killed)], cwd=ROOT, check=True, capture_output=True, env=os.environ)
    assert json.loads((killed / "manifest.json").read_text()) == expected
    assert done > 1, "it was killed too late to show anything"


def test_prompts_of_this_project_are_many_and_different():
    prompts = project_prompts()
    assert len(prompts) == len(set(prompts)) == 200 and any(len(prompt) > 1 for prompt in prompts)


def test_prompts_are_chosen_by_hash_and_once(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n two \nthree\none\n")
    assert prompts_of_file(path) == [("one",), ("two",), ("three",), ("one",)]
    left_out = Counter()
    chosen = choose(prompts_of_file(path), 2, 0, left_out)
    assert len(chosen.prompts) == 2 and chosen.different == 3 and left_out == {"repeated": 1}
    assert set(choose([("three",), ("two",), ("one",)], 2, 0, Counter()).prompts) == set(chosen.prompts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "x", "ends in .txt"),
        ("p.txt", "\n", "holds no prompts"),
        ("p.jsonl", '{"text": "x"}\n', "line 1 has no member `prompt`"),
        ("p.jsonl", '{"prompt": [1]}\n', "must be a text, or a list of texts"),
        ("p.jsonl", "{\n", "line 1 is not valid JSON"),
        ("p.txt", b"\xff\xfeq\xd8\0", "cannot be read: .*; save the file as UTF-8"),
        ("p.txt", b"Gr\xf6\xdfe?", "cannot be read: .*; save the file as UTF-8"),
    ],
)
def test_bad_files_of_prompts_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        prompts_of_file(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_prompts_are_read_as_editors_save_them(tmp_path, encoding):
    path = tmp_path / "PROMPTS.TXT"
    path.write_text("Größe?\r\nzwei\r\n", encoding=encoding, newline="")
    assert prompts_of_file(path) == [("Größe?",), ("zwei",)]


def test_questions_that_need_their_image_are_not_asked(tmp_path):
    assert text_alone(f"{shown_slot(0)}\nWhat colour is grass?") == "What colour is grass?"
    assert text_alone(f"Is grass green? {shown_slot(0)} {shown_slot(1)}") == "Is grass green?"
    assert text_alone(f"Is {shown_slot(0)} a dog?") == "" == text_alone(f"In image {named_slot(0)}, what is it?")
    assert text_alone("What is in the picture?") == "" == text_alone(shown_slot(0))
    image = (ImageRef("s", "k"),)
    texts = {"train": "What is grass?", "heldout": "What is a tree?", "val": "Describe the photo."}
    records = [
        (f"d:{split}", Record(split, image, (Round((text,), ("x",), (0,)),), split=split))
        for split, text in texts.items()
    ]
    write_table(tmp_path / "d.parquet", pa.Table.from_batches([to_batch(records, "own")]))
    left_out = Counter()
    assert list(questions_of_records(tmp_path / "d.parquet", left_out)) == [("What is grass?",)]
    assert left_out == {"kept for evaluation": 1, "refers to an image": 1}
