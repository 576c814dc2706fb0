"""A fault is repaired: only the work of its dataset, or of its source of images, is done again, and what hangs on
it."""

import copy
import shutil

import pytest

from scripts.config.registry import DATASETS
from tests.faults.test_damaged_world import ROWS
from tests.synthetic_data import make_synthetic_data
from tests.workflow.project import TINY, Project

CONFIG = copy.deepcopy(TINY) | {"data_path": "data", "runs": {}, "suites": {}}
CONFIG["blends"] = {
    "all": TINY["blends"]["mixed"] | {"datasets": {name: {} for name in DATASETS}, "images": "referenced"}
}
COCO = {name for name, dataset in DATASETS.items() if "coco" in dataset.image_sources}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_synthetic_data(tmp_path_factory.mktemp("whole"), images=60, rows=ROWS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The data of a damaged world, built."""
    faults = [
        *(
            "truncated",
            "missing_image",
            "padded_id",
            "doubled_clip",
            "lost_side",
            "lost_round",
            "prefix_id",
            "wrong_type",
        ),
        *("empty_answer", "invalid_utf8", "absolute_path", "archive_link"),
    ]
    damaged = make_synthetic_data(tmp_path_factory.mktemp("damaged"), images=60, rows=ROWS, faults=faults)
    (damaged / "miniature.json").unlink()
    project = Project.create(tmp_path_factory.mktemp("graph") / "project", CONFIG)
    shutil.copytree(damaged, project.folder / "data")
    project.snakemake("data")
    return project


@pytest.mark.parametrize(
    ("repaired", "source", "datasets", "images"),
    [
        ("aokvqa/annotations/aokvqa_v1p0_train.json", "aokvqa", {"aokvqa"}, False),
        ("llava/conversation_58k.json", "llava_dial", {"llava_dial"}, False),
        ("MIMIC-IT/CGD_instructions.json", "mimicit_cgd", {"otter_mimicit_cgd"}, False),
        ("MIMIC-IT/TVC.json", "mimicit_tvc", {"otter_mimicit_tvc"}, True),
        ("MIMIC-IT/SN_instructions.json", "mimicit_sn", {"otter_mimicit_sn"}, True),
        ("SparklesDialogueCC/annotations/SparklesDialogueCC.json", "sparkles", {"sparkles_dialogue"}, True),
        ("cc_sbu_align/image", "cc_sbu_align", {"minigpt4"}, True),
        ("coco/train2017", "coco", COCO, True),
    ],
    ids=lambda value: value.rpartition("/")[2] if isinstance(value, str) else "",
)
def test_only_what_depends_on_the_repaired_file_is_made_again(
    built, whole, tmp_path, repaired, source, datasets, images
):
    shutil.copytree(built.folder, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project")
    assert project.jobs("data") == {}
    place = project.folder / "data" / repaired
    if place.is_dir():
        shutil.rmtree(place)
    (shutil.copytree if (whole / repaired).is_dir() else shutil.copy)(whole / repaired, place)
    planned = project.planned("data")
    assert planned["fetch"] == {source} and planned["validate"] == {source, *datasets}
    assert planned["convert"] == planned["count_tokens"] == datasets
    assert planned.get("shard", set()) == planned.get("media_index", set()) == ({source} if images else set())
    assert ("holdout" in planned) == images
    assert {"plan", "blend", "preview"} <= set(planned) and not {"miniature", "pretrain"} & set(planned)


def test_the_repaired_source_is_built_and_then_done(built, whole, tmp_path):
    shutil.copytree(built.folder, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project")
    shutil.copy(whole / "MIMIC-IT/SD.json", project.folder / "data/MIMIC-IT/SD.json")
    before = project.hashes("records/*.parquet")
    project.snakemake("data")
    after = project.hashes("records/*.parquet")
    assert {name for name in before if before[name] != after[name]} == {"records/otter_mimicit_sd.parquet"}
    assert project.jobs("data") == {}
