"""The miniature's datasets with images of their own: read by the real adapters, true, and sorted by kinds.json."""

import json
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest

from scripts.blending.slots import render_slots
from scripts.config.miniature import MiniatureConfig
from scripts.synthetic.albums import albums
from scripts.synthetic.language import kinds
from scripts.synthetic.world import World
from tests.scripts.synthetic.solving import solve
from tests.synthetic_data import build_records, make_synthetic_data

SHARES = {"minigpt4": 0.5, "ocr_vqa": 0.5, "sparkles": 1.0}
FILES = {
    "cc_sbu_align/filter_cap.json": ("cc_sbu_align/image", 45),
    "OCR_VQA/dataset.json": ("OCR_VQA/images", 45),
    "SparklesDialogueCC/annotations/SparklesDialogueCC.json": ("SparklesDialogueCC/images", 90),
    "SparklesDialogueVG/annotations/SparklesDialogueVG.json": ("SparklesDialogueVG/images", 90),
}
ORDINALS = {"first": 1, "second": 2, "third": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("albums")
    return folder, make_synthetic_data(folder, images=90, rows=SHARES)


@pytest.fixture(scope="module")
def scenes():
    """The scene of every image of the albums by its path below the data path."""
    world = World(MiniatureConfig(images=90, rows=SHARES))
    return {
        album.path(number): album.scene(number) for album, _ in albums(world).values() for number in range(len(album))
    }


def _records(folder, dataset):
    return pq.read_table(build_records(folder[1], folder[0] / dataset, [dataset]) / f"{dataset}.parquet").to_pylist()


def _scenes(record, scenes):
    return [scenes[f"{image['key']}.jpg"] for image in record["images"]]


def _kind(folder, asked):
    (row,) = [row for row in json.loads((folder[1] / "kinds.json").read_text()) if re.search(row["pattern"], asked)]
    return row


def test_every_album_has_a_file_and_a_folder(folder):
    for path, (images, size) in FILES.items():
        assert json.loads((folder[1] / path).read_text())
        assert len(list((folder[1] / images).iterdir())) == size


def test_rows_are_like_the_real_ones(folder):
    caption = json.loads((folder[1] / "cc_sbu_align/filter_cap.json").read_text())["annotations"][0]
    assert set(caption) == {"image_id", "caption"} and isinstance(caption["image_id"], str)
    covers = json.loads((folder[1] / "OCR_VQA/dataset.json").read_text())
    for row in covers.values():
        assert list(row) == ["imageURL", "questions", "answers", "title", "authorName", "genre", "split"]
        assert len(row["questions"]) == len(row["answers"]) > 1
    assert {row["split"] for row in covers.values()} == {1, 2, 3}
    (dialogue,) = json.loads((folder[1] / list(FILES)[2]).read_text())[0].values()
    assert [turn["role"] for turn in dialogue] == ["user", "assistant"] * 2
    assert [len(turn["images"]) for turn in dialogue] == [2, 0, 1, 0]
    assert dialogue[0]["content"].count("<Img><ImageHere></Img>") == 2
    assert set(dialogue[0]["images"][0]) == {"image_id", "caption"}


def test_an_id_may_be_the_beginning_of_another(folder):
    ids = [path.stem for path in (folder[1] / "SparklesDialogueCC/images").iterdir()]
    assert any(one != other and other.startswith(one) for one in ids for other in ids)


def test_answers_about_covers_are_right(folder, scenes):
    records = _records(folder, "ocr_vqa")
    assert len(records) == 45
    for record in records:
        (round_,) = record["rounds"]
        for asked, answer in zip(round_["question"], round_["answer"], strict=True):
            assert solve(asked, _scenes(record, scenes)) == answer
            assert _kind(folder, asked)["images"] == "one"


def test_answers_of_dialogues_are_right_in_both_styles(folder, scenes):
    records = _records(folder, "sparkles_dialogue")
    assert len(records) == 60
    found = Counter()
    for record in records:
        seen = []
        for round_ in record["rounds"]:
            seen += [_scenes(record, scenes)[place] for place in round_["images"]]
            answers = round_["answer"] * (len(round_["question"]) // len(round_["answer"]))
            for asked, answer in zip(round_["question"], answers, strict=True):
                asked, answer = render_slots(asked, 0), _numbered(render_slots(answer, 0))
                kind = _kind(folder, asked)
                assert kind["images"] == "several"
                found[kind["name"]] += 1
                opening = re.match(r"Here (?:is|are) [^.]*\. ", asked)
                assert solve(_numbered(asked[opening.end() :]), seen) == answer
    assert {"named_what", "compare", "which"} <= set(found)


def _numbered(text):
    return re.sub(r"[Tt]he (\w+) image", lambda match: f"image {ORDINALS[match[1]]}", text).replace("Image ", "image ")


def test_a_share_of_zero_writes_no_file(tmp_path):
    world = make_synthetic_data(tmp_path, images=9, rows={"minigpt4": 0, "ocr_vqa": 0, "sparkles": 0})
    assert not any((world / path).exists() for path in FILES)


def test_kinds_are_those_of_the_world():
    assert {row["name"] for row in kinds(MiniatureConfig())} >= {"named_what", "compare", "which", "describe"}
