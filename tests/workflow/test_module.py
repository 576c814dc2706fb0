"""The rules as a module of another workflow, which has files, programs and names of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.preload import client as preload
from tests.workflow.project import TINY, Project

pytestmark = pytest.mark.integration

OUTER = """
configfile: "outer.yaml"

module visualchat:
    snakefile: "../its clone/Snakefile"
    config: config["chat"]
    {prefix}

use rule * from visualchat as visualchat_*

onstart:
    visualchat.onstart()

rule mine:
    default_target: True
    input: "{root}/records/llava.report.json"
    output: "mine.txt"
    shell: "python scripts/own.py > {{output}}"
"""


@pytest.fixture
def outer(tmp_path) -> Path:
    """A workflow with a package `scripts` of its own, beside a clone of ours."""
    Project.create(tmp_path / "its clone")
    folder = tmp_path / "outer"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts/__init__.py").write_text("")
    (folder / "scripts/own.py").write_text("import sibling\n\nprint(sibling.TEXT)\n")
    (folder / "scripts/sibling.py").write_text('TEXT = "a program of its own"\n')
    (folder / "talk.json").write_text("{}")
    config = TINY | {"suites": {"dialogues": "miniature", "own": "talk.json"}}
    (folder / "outer.yaml").write_text(yaml.safe_dump({"chat": config}))
    return folder


def snakemake(folder: Path, *arguments: str, check: bool = True) -> str:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nocolor", *arguments]
    options = {"cwd": folder, "env": os.environ | preload.in_shells(), "stdin": subprocess.DEVNULL}
    done = preload.run(command, capture_output=True, text=True, **options)
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output[-6000:]
    return output


@pytest.mark.parametrize(
    ("prefix", "root"),
    [pytest.param('prefix: "deep/er"', "deep/er/out", id="prefix"), pytest.param("", "out", id="plain")],
)
def test_another_workflow_uses_the_rules_and_keeps_its_own(outer, prefix, root):
    (outer / "Snakefile").write_text(OUTER.format(prefix=prefix, root=root))
    snakemake(outer)
    assert (outer / "mine.txt").read_text() == "a program of its own\n"
    assert json.loads((outer / root / "records/llava.report.json").read_text())["kept"] > 0
    assert json.loads((outer / root / "configuration.json").read_text())["name"] == "tiny"
    if prefix:
        assert not (outer / "out").exists()
    # Every path of every command is where Snakemake puts it; the user's own file is where it is.
    planned = snakemake(outer, "-n", "-p", "visualchat_all")
    commands = re.findall(r"python -m scripts\.\w+ .*", planned)
    paths = [word for line in commands for word in re.findall(r"(?<=[ =])[\w/.]*out/[\w/.-]+", line)]
    assert len(paths) > 200 and {path.split("out/")[0] + "out" for path in paths} == {root}
    assert any("--suite=own=talk.json" in line for line in commands)
    assert "Nothing to be done" in snakemake(outer, "-n")


def test_a_root_of_another_configuration_is_refused_below_the_prefix_too(outer):
    (outer / "Snakefile").write_text(OUTER.format(prefix='prefix: "deep/er"', root="deep/er/out"))
    (outer / "deep/er/out").mkdir(parents=True)
    (outer / "deep/er/out/configuration.json").write_text('{"v": 1, "name": "another"}')
    assert "holds the results of the configuration 'another'" in snakemake(outer, "-n", check=False)


def test_the_report_of_a_module_draws_the_graph(outer):
    (outer / "Snakefile").write_text(OUTER.format(prefix='prefix: "deep/er"', root="deep/er/out"))
    # The graph is written before the first job, which a file in the place of its folder ends.
    (outer / "deep/er/out").mkdir(parents=True)
    (outer / "deep/er/out/raw").write_text("")
    snakemake(outer, "visualchat_report_page", "mine", check=False)
    rules = json.loads((outer / "deep/er/out/graph.json").read_text())["rules"]
    assert rules["visualchat_plan"]["stage"] == "blends" and "mine" not in rules
