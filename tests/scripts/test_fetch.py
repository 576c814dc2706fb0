"""fetch lists and hashes what is there, and says how to get what is not."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.adapters.conversion import load_adapter
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json
from scripts.config.registry import DATASETS, REGISTRY, SOURCES, Download
from scripts.fetch import fetch
from tests.synthetic_data import make_synthetic_data

THIRTEEN = [
    "aokvqa",
    "coco_caption",
    "llava",
    "llava_dial",
    "llava_otter_blend",
    "minigpt4",
    "ocr_vqa",
    "otter_mimicit_cgd",
    "otter_mimicit_sd",
    "otter_mimicit_sn",
    "otter_mimicit_tvc",
    "otter_mimicit_vst",
    "sparkles_dialogue",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_synthetic_data(tmp_path_factory.mktemp("world"), images=6)


def test_images_are_listed_with_their_hashes(world, tmp_path):
    card = fetch(SOURCES["coco"], world, tmp_path / "coco")
    rows = pq.read_table(tmp_path / "coco/files.parquet").to_pylist()
    names = sorted(path.name for path in (world / "coco/train2017").iterdir())
    assert [row["path"] for row in rows] == [f"coco/train2017/{name}" for name in names]
    for row in rows:
        place = tmp_path / "coco/files" / row["path"]
        assert (place.stat().st_size, file_sha256(place)) == (row["bytes"], row["sha256"])
    assert card == read_json(tmp_path / "coco/source.json")
    assert (card["files"], card["provided_by"], card["licence"]) == (6, "miniature", SOURCES["coco"].licence)


def test_only_what_is_required_is_looked_at(world, tmp_path):
    card = fetch(SOURCES["llava"], world, tmp_path / "llava", ["llava/detail_23k.json"])
    assert card["files"] == 1
    lone = tmp_path / "data"
    (lone / "llava").mkdir(parents=True)
    (lone / "llava/detail_23k.json").write_text("[]")
    fetch(SOURCES["llava"], lone, tmp_path / "two", ["llava/detail_23k.json"])
    with pytest.raises(UserError, match="complex_reasoning"):
        fetch(SOURCES["llava"], lone, tmp_path / "three", ["llava/complex_reasoning_77k.json"])


def test_two_fetches_give_the_same_bytes_wherever_the_data_lies(world, tmp_path):
    (tmp_path / "elsewhere").symlink_to(world)
    for name, place in (("one", world), ("two", tmp_path / "elsewhere")):
        fetch(SOURCES["coco"], place, tmp_path / name)
    for file in ("files.parquet", "source.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_changed_image_changes_the_card(tmp_path):
    data = make_synthetic_data(tmp_path, images=2)
    before = fetch(SOURCES["coco"], data, tmp_path / "coco")["sha256"]
    image = next((data / "coco/train2017").iterdir())
    image.write_bytes(image.read_bytes() + b"x")
    assert fetch(SOURCES["coco"], data, tmp_path / "coco")["sha256"] != before


def test_the_link_is_replaced_and_a_relative_one_moves_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_synthetic_data(tmp_path / "results", images=1)
    other = tmp_path / "other"
    (other / "aokvqa/annotations").mkdir(parents=True)
    (other / "aokvqa/annotations/aokvqa_v1p0_train.json").write_text("[]")
    fetch(SOURCES["aokvqa"], other, tmp_path / "results/raw/aokvqa")
    assert os.readlink("results/raw/aokvqa/files") == str(other)
    fetch(SOURCES["aokvqa"], Path("results/raw/miniature"), Path("results/raw/aokvqa"))
    os.rename("results", "moved")
    assert (tmp_path / "moved/raw/aokvqa/files/kinds.json").is_file()


@pytest.mark.parametrize(
    ("source", "user"),
    [
        ("coco", "aokvqa, coco_caption, llava, llava_dial, llava_otter_blend, otter_mimicit_cgd"),
        ("llava", "llava, llava_otter_blend"),
        ("mimicit_cgd", "llava_otter_blend, otter_mimicit_cgd"),
        ("mimicit_sd", "otter_mimicit_sd"),
        ("coco_caption", "coco_caption"),
        ("aokvqa", "aokvqa"),
        ("cc_sbu_align", "minigpt4"),
        ("ocr_vqa", "ocr_vqa"),
        ("sparkles", "sparkles_dialogue"),
    ],
)
def test_a_missing_file_names_its_source_and_users_the_path_and_how_to_get_it(tmp_path, source, user):
    with pytest.raises(UserError) as caught:
        fetch(SOURCES[source], tmp_path / "nothing", tmp_path / "out")
    message = str(caught.value)
    first = SOURCES[source].paths()[0]
    assert f"source {source!r}" in message and f"needed by {user}." in message
    assert str(tmp_path / "nothing" / first) in message.replace("//", "/")
    assert SOURCES[source].how_to_get in message
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_of_images_is_an_error(tmp_path):
    (tmp_path / "coco/train2017").mkdir(parents=True)
    (tmp_path / "coco/train2017/readme.txt").write_text("no image")
    with pytest.raises(UserError, match="contains no image"):
        fetch(SOURCES["coco"], tmp_path, tmp_path / "out")


def test_a_folder_that_may_be_absent_is_listed_where_it_is_there(world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world / "coco", data / "coco")
    assert fetch(SOURCES["coco"], data, tmp_path / "without")["files"] == 6
    (data / "coco/val2017").mkdir()
    assert fetch(SOURCES["coco"], data, tmp_path / "empty")["files"] == 6
    shutil.copy(next((data / "coco/train2017").iterdir()), data / "coco/val2017/000000000139.jpg")
    assert fetch(SOURCES["coco"], data, tmp_path / "with")["files"] == 7
    paths = pq.read_table(tmp_path / "with/files.parquet")["path"].to_pylist()
    assert "coco/val2017/000000000139.jpg" in paths


def test_other_files_of_a_source_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="does not belong"):
        fetch(SOURCES["coco"], world, tmp_path / "out", ["../../etc/"])


def test_a_folder_in_place_of_the_link_is_kept(world, tmp_path):
    (tmp_path / "out/files").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a link"):
        fetch(SOURCES["coco"], world, tmp_path / "out")


def test_the_program_ends_with_one_line(tmp_path):
    command = [sys.executable, "-m", "scripts.fetch", "--source", "aokvqa", "--data-path", str(tmp_path), "--out"]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: source 'aokvqa'") and done.stderr.count("\n") == 1


def test_the_registry_knows_the_thirteen_and_is_consistent():
    assert set(DATASETS) >= set(THIRTEEN)
    for dataset in DATASETS.values():
        assert set(dataset.image_sources) <= set(SOURCES) and set(dataset.parts) <= set(DATASETS)
        found = {path for source in SOURCES for path in REGISTRY.requirements(source, [dataset.name])}
        assert set(dataset.files) <= found and REGISTRY.terms_of(dataset.name)
        if dataset.adapter:
            assert callable(load_adapter(dataset).records)
    for source in SOURCES.values():
        assert source.terms and source.licence and source.how_to_get
        places = [form for file in source.files for form in file.forms()]
        places += [place for images in source.images for place in (images.folder, *images.containers)]
        for download in source.downloads:
            name = download.path + "*.parquet" if download.path.endswith("/") else download.path
            assert name in places, "a download must be what fetch looks for"
            assert download.addresses
    assert REGISTRY.sources_of("llava_otter_blend") == ["coco", "llava", "llava_dial", "mimicit_cgd"]
    assert REGISTRY.sources_of("aokvqa") == ["aokvqa", "coco"]
    assert {"research-only", "OpenAI-terms", "Flickr-terms"} <= REGISTRY.terms_of("llava_otter_blend")


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"path": "../x"}, "below the data path"),
        ({"path": "/x"}, "below the data path"),
        ({"path": "x", "addresses": ["ftp://x/y"]}, "pattern"),
        ({"path": "x", "sha256": "abc"}, "at least 64"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused(bad, word):
    with pytest.raises(ValueError, match=word):
        Download.model_validate(bad)


@pytest.mark.parametrize(
    ("source", "datasets", "needed"),
    [
        ("llava", ["llava"], ["llava/detail_23k.json", "llava/complex_reasoning_77k.json"]),
        ("llava_dial", ["llava_dial"], ["llava/conversation_58k.json"]),
        ("llava", ["llava_dial"], []),
        ("llava", ["llava_otter_blend"], [file.path for file in SOURCES["llava"].files]),
        ("coco", ["aokvqa", "llava"], ["coco/train2017/", "coco/val2017/"]),
        ("coco", [], []),
        ("mimicit_cgd", ["llava_otter_blend"], ["MIMIC-IT/CGD_instructions.json"]),
        ("mimicit_cgd", ["llava"], []),
        ("mimicit_vst", ["otter_mimicit_vst"], ["MIMIC-IT/VST_instructions.json", "MIMIC-IT/VST/"]),
    ],
)
def test_requirements_are_exactly_what_the_datasets_need(source, datasets, needed):
    assert REGISTRY.requirements(source, datasets) == needed


def _zipped(world, out, folder):
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted((world / folder).iterdir()):
            archive.write(path, f"anything/{path.name}")


def test_an_archive_stands_for_its_folder(world, tmp_path):
    data = tmp_path / "data"
    (data / "coco").mkdir(parents=True)
    _zipped(world, data / "coco/train2017.zip", "coco/train2017")
    card = fetch(SOURCES["coco"], data, tmp_path / "zip")
    loose = fetch(SOURCES["coco"], world, tmp_path / "loose")
    assert card["image_sets"]["coco/train2017/"]["containers"] == ["coco/train2017.zip"]
    assert (card["files"], card["images"], loose["files"], loose["images"]) == (1, 6, 6, 6)
    assert card["published"]["coco/train2017.zip"]["bytes"] == 19_336_861_798
    paths = [pq.read_table(tmp_path / name / "images.parquet")["path"].to_pylist() for name in ("zip", "loose")]
    assert paths[0] == paths[1]
    # Files that are there as such come first.
    (data / "coco/train2017").mkdir()
    shutil.copy(next((world / "coco/train2017").iterdir()), data / "coco/train2017")
    assert fetch(SOURCES["coco"], data, tmp_path / "both")["image_sets"]["coco/train2017/"]["containers"] == []


def test_rows_in_another_form_are_found(world, tmp_path):
    data = tmp_path / "data"
    (data / "MIMIC-IT/CGD_Instructions").mkdir(parents=True)
    raw = json.loads((world / "MIMIC-IT/CGD_instructions.json").read_text())["data"]
    rows = [
        {
            "id": id_,
            "instruction": row["instruction"],
            "answer": row["answer"],
            "images": row["image_ids"],
            "related instructions": row["rel_ins_ids"],
        }
        for id_, row in raw.items()
    ]
    for part, some in enumerate((rows[:5], rows[5:])):
        name = f"MIMIC-IT/CGD_Instructions/train-{part:05d}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(some), data / name)
    card = fetch(SOURCES["mimicit_cgd"], data, tmp_path / "raw")
    found = RawFiles({"mimicit_cgd": tmp_path / "raw"})
    assert len(card["annotations"]["MIMIC-IT/CGD_instructions.json"]["found"]) == 2
    assert {row.id: row.value["rel_ins_ids"] for row in found.rows("MIMIC-IT/CGD_instructions.json")} == {
        id_: row["rel_ins_ids"] for id_, row in raw.items()
    }


def test_an_optional_file_is_read_where_it_is_there(world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world / "MIMIC-IT", data / "MIMIC-IT")
    path = "MIMIC-IT/expired_images.json"
    for content, expected in ((None, None), ("[1, 2]", [1, 2])):
        if content:
            (data / path).write_text(content)
        out = tmp_path / f"raw-{expected}"
        fetch(SOURCES["mimicit_vst"], data, out)
        assert RawFiles({"mimicit_vst": out}).optional_json(path) == expected


def test_a_damaged_container_names_itself(world, tmp_path):
    data = tmp_path / "data"
    (data / "coco").mkdir(parents=True)
    _zipped(world, data / "coco/train2017.zip", "coco/train2017")
    whole = (data / "coco/train2017.zip").read_bytes()
    (data / "coco/train2017.zip").write_bytes(whole[:-300])
    with pytest.raises(UserError, match=r"train2017.zip is damaged or cut off"):
        fetch(SOURCES["coco"], data, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
