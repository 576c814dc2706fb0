"""The samples recipe on a folder of real photographs, through training and evaluation.

The folder is the user's: its place is read from VISUALCHAT_SAMPLES, in the layout that docs/fetch.md shows.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.workflow.project import ROOT, Project

SAMPLES = os.environ.get("VISUALCHAT_SAMPLES", "")
needs_samples = pytest.mark.skipif(
    not Path(SAMPLES, "coco/train2017").is_dir(), reason="VISUALCHAT_SAMPLES names no folder with raw samples"
)


@pytest.fixture
def project(tmp_path):
    project = Project.create(tmp_path / "project")
    shutil.copy(ROOT / "recipes/samples.yaml", project.folder / "samples.yaml")
    return project


@needs_samples
def test_real_photographs_go_through_training_and_evaluation(project):
    project.snakemake("--config", f"data_path={SAMPLES}", config="samples.yaml")
    root = project.folder / "results-samples"
    kept = {
        path.name.split(".")[0]: json.loads(path.read_text())["kept"]
        for path in (root / "records").glob("*.report.json")
    }
    assert set(kept) == {"aokvqa", "coco_caption", "llava", "llava_dial", "otter_mimicit_cgd"}
    assert all(count > 0 for count in kept.values()), kept
    plan = json.loads((root / "plan/all/epoch-000.json").read_text())
    assert plan["conversations"] > 0
    finished = json.loads((root / "train/mmca/finished.json").read_text())
    assert finished["steps"] > 0
    assert json.loads((root / "evaluate/mmca/metrics.json").read_text())
    assert (root / "report.html").stat().st_size > 10_000
    again = project.snakemake("-n", "--config", f"data_path={SAMPLES}", config="samples.yaml")
    assert "Nothing to be done" in again


def test_a_missing_raw_file_is_named_with_the_place_and_the_way_to_get_it(project, tmp_path):
    (tmp_path / "raw/coco/train2017").mkdir(parents=True)
    output = project.snakemake(
        "--config", f"data_path={tmp_path / 'raw'}", "--", "data", check=False, config="samples.yaml"
    )
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert errors and "Traceback" not in output
    named = next(line for line in errors if "coco_caption/dataset.json" in line)
    assert "coco_caption" in named and str(tmp_path / "raw") in named and "http" in named
