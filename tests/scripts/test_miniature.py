"""The miniature on disk: the raw formats of the real datasets, whole or absent, the same bytes every time."""

import json
import re
import subprocess
import sys

import pytest

from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.config.miniature import MiniatureConfig
from scripts.evaluation.suite_reader import read_suite
from scripts.miniature import write_world
from scripts.synthetic.tasks import tasks
from scripts.synthetic.world import World
from tests.synthetic_data import make_synthetic_data

LLAVA = ("llava/detail_23k.json", "llava/complex_reasoning_77k.json", "llava/conversation_58k.json")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_synthetic_data(tmp_path_factory.mktemp("world"), images=80)


def _read(world, path):
    return json.loads((world / path).read_text())


def test_llava_rows_are_like_the_real_ones(world):
    placed = set()
    for path in LLAVA:
        for row in _read(world, path):
            assert list(row) == ["id", "image", "conversations"]
            assert row["image"] == f"{row['id']}.jpg" and (world / "coco/train2017" / row["image"]).is_file()
            turns = row["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
            first, *others = [turn["value"] for turn in turns]
            placed.add(first.index("<image>") == 0)
            assert first.count("<image>") == 1 and "\n" in first and not any("<image>" in other for other in others)
    assert placed == {True, False}
    assert max(len(row["conversations"]) for row in _read(world, LLAVA[2])) == 6


def test_cgd_rows_are_like_the_real_ones(world):
    file = _read(world, "MIMIC-IT/CGD_instructions.json")
    assert set(file) == {"meta", "data"}
    for id_, row in file["data"].items():
        assert re.fullmatch(r"CGD_INS_\d{6}", id_)
        assert set(row) == {"instruction", "answer", "image_ids", "rel_ins_ids"}
        assert len(row["image_ids"]) == 2 and all(re.fullmatch(r"CGD_IMG_\d{12}", name) for name in row["image_ids"])
        for related in row["rel_ins_ids"]:
            assert file["data"][related]["image_ids"] == row["image_ids"]
            assert id_ in file["data"][related]["rel_ins_ids"]


def test_karpathy_rows_are_like_the_real_ones(world):
    file = _read(world, "coco_caption/dataset.json")
    assert file["dataset"] == "coco" and {row["split"] for row in file["images"]} <= {"train", "restval", "val", "test"}
    for row in file["images"]:
        assert row["filename"] == f"COCO_{row['filepath']}_{row['cocoid']:012d}.jpg"
        assert (row["filepath"] == "train2014") == (row["split"] == "train")
        assert [sentence["sentid"] for sentence in row["sentences"]] == row["sentids"] and len(row["sentids"]) == 5
        assert set(row["sentences"][0]) == {"tokens", "raw", "imgid", "sentid"}
    assert len({sentid for row in file["images"] for sentid in row["sentids"]}) == 5 * len(file["images"])


def test_aokvqa_rows_are_like_the_real_ones(world):
    rows = _read(world, "aokvqa/annotations/aokvqa_v1p0_train.json")
    assert rows and len({row["question_id"] for row in rows}) == len(rows)
    for row in rows:
        assert len(set(row["choices"])) == 4 and 0 <= row["correct_choice_idx"] < 4
        assert len(row["direct_answers"]) == 10 and len(row["rationales"]) == 3
        assert isinstance(row["image_id"], int) and row["split"] == "train"


def test_the_suite_has_answers_and_images_of_its_own(world):
    dialogues, answers = _read(world, "dialogues/dialogues.json"), _read(world, "dialogues/answers.json")
    assert {name.rsplit("_", 1)[0] for name in dialogues} == {"single", "pair", "recall"}
    trained = {file_sha256(path) for path in (world / "coco/train2017").iterdir()}
    recalled = 0
    for name, rounds in dialogues.items():
        assert len(rounds) == len(answers[name]) and len(rounds[0]) == 2
        shown = [path for round_ in rounds for path in (round_[1].split() if len(round_) > 1 else [])]
        assert all(file_sha256(world / "dialogues" / path) not in trained for path in shown)
        recalled += any(round_[0].startswith("In image 1, ") for round_ in rounds)
    assert recalled >= 3


def test_scenes_are_listed_for_every_image(world):
    lines = [json.loads(line) for line in (world / "scenes.jsonl").read_text().splitlines()]
    assert len(lines) == 80 and all((world / line["path"]).is_file() for line in lines)
    assert set(lines[0]["objects"][0]) == {"cell", "shape", "colour", "size"}


def test_two_builds_give_the_same_bytes(world, tmp_path):
    again = make_synthetic_data(tmp_path, images=80)
    paths = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert paths == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all(file_sha256(world / path) == file_sha256(again / path) for path in paths)


def test_a_smaller_world_leaves_nothing_of_a_larger_one(tmp_path):
    write_world(MiniatureConfig(images=5), tmp_path / "out")
    manifest = write_world(MiniatureConfig(images=3), tmp_path / "out")
    assert len(list((tmp_path / "out/coco/train2017").iterdir())) == manifest["images"] == 3
    assert not list(tmp_path.glob(".*"))


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"thesis.tex"):
        write_world(MiniatureConfig(images=1), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(("rate", "rows"), [(0.0, 0), (1.0, 20), (2.0, 40)])
def test_rows_per_image_can_be_chosen(tmp_path, rate, rows):
    manifest = write_world(MiniatureConfig(images=20, rows={"llava_dial": rate}), tmp_path / "out")
    assert manifest["rows"]["llava/conversation_58k.json"] == rows


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"kinds": ["compare"]}, "one image"), ({"kinds": ["size"]}, "sizes"), ({"kinds": ["what", "what"]}, "twice")],
)
def test_settings_that_cannot_be_asked_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        MiniatureConfig(**settings)


def test_the_program_runs_by_hand(tmp_path):
    command = [sys.executable, "-m", "scripts.miniature", "--settings", '{"images": 2}', "--out", str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _read(tmp_path / "m", "miniature.json")["images"] == 2
    bad = subprocess.run([*command[:4], '{"imags": 2}', *command[5:]], capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and "imags" in bad.stderr and "Traceback" not in bad.stderr


def test_the_task_files_can_be_read_and_are_right(world):
    choices = read_suite(world / "tasks/choices.yaml")
    assert len(choices.dialogues) >= 20 and choices.output_type == "multiple_choice"
    places = {dialogue.rounds[0].target for dialogue in choices.dialogues}
    assert len(places) > 2
    orders = read_suite(world / "tasks/orders.yaml")
    groups = {}
    for dialogue in orders.dialogues:
        groups.setdefault(dialogue.cluster, []).append(dialogue.rounds[0])
    assert len(groups) >= 20 and {len(group) for group in groups.values()} == {2}
    swapped = {"image 1": "image 2", "image 2": "image 1"}
    for one, other in groups.values():
        assert [image.sha256 for image in one.images] == [image.sha256 for image in other.images][::-1]
        if one.question == other.question:
            assert other.references[0] == swapped.get(one.references[0], one.references[0])
        else:
            assert one.question.replace("image 1", "image 2") == other.question and one.references == other.references
    trained = {file_sha256(path) for path in (world / "coco/train2017").iterdir()}
    shown = {image.sha256 for suite in (choices, orders) for each in suite.dialogues for image in each.rounds[0].images}
    assert not shown & trained


def test_every_kind_of_question_has_choices():
    for kind in ("what", "colour", "shape", "count", "where", "size", "count_colour", "exist"):
        written = tasks(World(MiniatureConfig(images=1, kinds=[kind], sizes=2)))
        rows = [json.loads(line) for line in written["choices.jsonl"].splitlines()]
        assert rows and all(0 <= row["target"] < len(row["choices"]) for row in rows)
        assert written["orders.jsonl"]
