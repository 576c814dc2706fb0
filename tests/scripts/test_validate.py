"""validate refuses what cannot be built, with one clear error, and counts what will be lost."""

import json
import subprocess
import sys

import pytest

from scripts.adapters.conversion import dataset_entry
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.config.registry import DATASETS, SOURCES
from scripts.validate import validate_dataset, validate_source
from tests.scripts.adapters.raw_folders import data_path, fetch_for
from tests.synthetic_data import fetch_all, make_synthetic_data

DIAL = "llava/conversation_58k.json"
GOOD = {
    "id": "1",
    "image": "000000000785.jpg",
    "conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}],
}
IMAGES = {"coco": 30, "cc_sbu_align": 3, "ocr_vqa": 3, "sparkles": 6}
IMAGES |= {"mimicit_sd": 4, "mimicit_sn": 6, "mimicit_tvc": 6, "mimicit_vst": 6}
ADAPTED = sorted(name for name, dataset in DATASETS.items() if dataset.adapter)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    return fetch_all(make_synthetic_data(folder, images=30), folder)


def _raw(tmp_path, content, dataset="llava_dial", path=DIAL):
    return fetch_for(dataset, data_path(tmp_path / "data", {path: content}), tmp_path / "raw").folders


@pytest.mark.parametrize("source", SOURCES)
def test_the_miniatures_sources_are_good(raw, source):
    verdict = validate_source(source, raw[source])
    assert verdict["ok"] and verdict["problems"] == []
    assert verdict["images"] == IMAGES.get(source, 0)
    assert set(verdict["files"]) == {file.path for file in SOURCES[source].files}


@pytest.mark.parametrize("dataset", ADAPTED)
def test_the_miniatures_datasets_are_good(raw, dataset):
    verdict = validate_dataset(dataset, raw)
    assert verdict["ok"] and verdict["problems"] == {} and verdict["expected"] is None
    assert verdict["rows"] >= verdict["records"] > 0 and verdict["images_named"] == verdict["images_present"] > 0


def test_rows_that_will_be_lost_are_counted(tmp_path):
    rows = [GOOD, GOOD | {"image": "000000000001.jpg"}, GOOD | {"image": "000000000002.jpg"}, 7]
    verdict = validate_dataset("llava_dial", _raw(tmp_path, rows))
    assert verdict["ok"] and (verdict["rows"], verdict["records"]) == (4, 1)
    counts = {reason: entry["count"] for reason, entry in verdict["problems"].items()}
    assert counts == {"missing_image": 2, "bad_row": 1}
    assert (verdict["images_named"], verdict["images_present"]) == (3, 1)


def test_a_users_copy_is_compared_with_the_published_file(tmp_path):
    verdict = validate_source("llava_dial", _raw(tmp_path, [GOOD])["llava_dial"])
    assert verdict["provided_by"] == "data_path" and verdict["files"][DIAL]["rows"] == 1
    size = (tmp_path / "data" / DIAL).stat().st_size
    assert verdict["problems"] == [f"{DIAL} is not the published file: it has {size} bytes instead of 126088572"]


def test_a_set_with_too_few_images_is_noted(tmp_path):
    verdict = validate_source("coco", _raw(tmp_path, [GOOD])["coco"])
    assert verdict["problems"] == ["coco/train2017/ has 4 images, 118287 are published"]


BROKEN = {
    "cut": ('[{"id": "1",\n "image": ', ["not valid JSON", "line 2"]),
    "binary": ("\x00\x01", ["not valid JSON"]),
    "empty file": ("", ["not valid JSON"]),
    "empty list": ([], ["no rows"]),
    "object": ({"a": 1}, ["list of rows", "dict"]),
    "number": (5, ["list of rows", "int"]),
    "deep": ("[" * 100_000, ["not valid JSON"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_clear_error(tmp_path, name):
    content, words = BROKEN[name]
    folders = _raw(tmp_path, content)
    for judge in (
        lambda: validate_source("llava_dial", folders["llava_dial"]),
        lambda: validate_dataset("llava_dial", folders),
    ):
        with pytest.raises(UserError) as caught:
            judge()
        assert all(word in str(caught.value) for word in [*words, DIAL])


@pytest.mark.parametrize("content", [{"meta": {}}, [], {"data": []}, {"data": {}}])
def test_a_member_that_is_absent_or_of_another_kind(tmp_path, content):
    path = "MIMIC-IT/CGD_instructions.json"
    folders = _raw(tmp_path, content, "otter_mimicit_cgd", path)
    with pytest.raises(UserError, match=r"CGD_instructions.json.*'data'"):
        validate_source("mimicit_cgd", folders["mimicit_cgd"])


def test_a_dataset_of_which_nothing_is_usable_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"none of its 2 rows .*\(2 missing_image\).*000000000003.jpg"):
        validate_dataset("llava_dial", _raw(tmp_path, [GOOD | {"image": "000000000003.jpg"}] * 2))


def test_a_source_that_was_not_given_is_named(raw):
    with pytest.raises(UserError, match=r"CGD_instructions.json is not there.*--raw"):
        validate_dataset("otter_mimicit_cgd", {"coco": raw["coco"]})


def test_a_file_that_fetch_was_not_asked_for_is_named(tmp_path):
    folders = _raw(tmp_path, [GOOD])
    with pytest.raises(UserError, match=r"detail_23k.json is not there"):
        validate_dataset("llava", folders)


@pytest.mark.parametrize(("dataset", "word"), [("llava_otter_blend", "join"), ("lava", "no dataset")])
def test_datasets_that_cannot_be_converted_say_why(dataset, word):
    with pytest.raises(UserError, match=word):
        dataset_entry(dataset, RawFiles({}))


def test_the_program_writes_its_verdict_only_if_there_is_one(tmp_path):
    folders = _raw(tmp_path, [GOOD])
    pairs = [f"{source}={folder}" for source, folder in folders.items()]
    command = [sys.executable, "-m", "scripts.validate", "--out", str(tmp_path / "v.json"), "--raw", *pairs]
    assert subprocess.run([*command, "--dataset", "llava_dial"], check=False).returncode == 0
    assert json.loads((tmp_path / "v.json").read_text())["records"] == 1
    (tmp_path / "v.json").unlink()
    bad = subprocess.run([*command, "--dataset", "aokvqa"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and bad.stderr.startswith("error: ") and not (tmp_path / "v.json").exists()
