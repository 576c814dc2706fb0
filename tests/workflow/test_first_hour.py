"""The first hour with the project: a first look at the whole graph, the README's next commands, and one's own data."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.workflow.commands import of_fences
from tests.workflow.project import ROOT, Project

pytestmark = pytest.mark.long


@pytest.fixture
def project(tmp_path):
    project = Project.create(tmp_path / "project")
    for folder in ("recipes", "examples"):
        shutil.copytree(ROOT / folder, project.folder / folder)
    return project


def test_a_first_look_is_short_and_the_readme_goes_on_from_it(project):
    output = project.snakemake("--logger", "visualchat", config="recipes/glimpse.yaml")
    assert len(output.splitlines()) < 60, output
    assert json.loads((project.folder / "results-glimpse/evaluate/mmca/metrics.json").read_text())
    (project.folder / "results").symlink_to("results-glimpse")
    readme = (ROOT / "README.md").read_text()
    commands = [line for line in of_fences(readme) if line.startswith("python -m scripts.")]
    assert [line.split()[2] for line in commands] == ["scripts.chat", "scripts.verify"]
    for line in [*commands, "python -m scripts.plan --show results/plan/demo/epoch-000.parquet"]:
        words = [sys.executable, *shlex.split(line)[1:]]
        question = "Which colour is the circle?\n"
        done = subprocess.run(words, cwd=project.folder, input=question, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip(), f"{line}\n{done.stdout}{done.stderr}"


def test_the_recipe_for_own_data_runs_on_the_examples(project):
    project.snakemake(config="recipes/own-data.yaml")
    root = project.folder / "results-own"
    report = json.loads((root / "records/pictures.report.json").read_text())
    assert report["kept"] == report["rows"] == len(json.loads((ROOT / "examples/conversations.json").read_text()))
    assert json.loads((root / "split/manifest.json").read_text())["heldout"] == 1
    assert json.loads((root / "evaluate/mmca/metrics.json").read_text())
