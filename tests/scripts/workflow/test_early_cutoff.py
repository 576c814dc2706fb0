"""Jobs behind a file that came out the same are skipped, on a graph of two steps that Snakemake really runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.workflow.preflight import damaged_steps
from scripts.workflow.products import Products

pytestmark = pytest.mark.integration

SNAKEFILE = """
from scripts.workflow import early_cutoff
from scripts.workflow.products import Products

if "without" in config:
    early_cutoff._NEEDED = ("an attribute that this version lacks",)


rule all:
    input: "out/page"


rule count:
    input: "text"
    output: "out/count"
    shell: ": -m scripts.count; wc -c < {input} > {output}"


rule page:
    input: "out/count"
    output: "out/page"
    params: title=config.get("title", "")
    shell: ": -m scripts.page; echo '{params.title}' | cat - {input} > {output}"


onstart:
    early_cutoff.install(workflow.dag, workflow.persistence, Products("out"))
"""


@pytest.fixture
def run(tmp_path):
    """Run the graph; what it has run."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "text").write_text("one")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}

    def snakemake(*config: str) -> list[str]:
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nocolor"]
        command += ["--config", *config] if config else []
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [
            rule for rule in re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", done.stderr, re.M) if rule != "all"
        ]

    assert snakemake() == ["count", "page"] and snakemake() == []
    return snakemake


def test_a_job_whose_input_came_out_the_same_is_skipped(run, tmp_path):
    (tmp_path / "text").write_text("two")
    assert run() == ["count"] and run() == []
    (tmp_path / "text").write_text("three")
    assert run() == ["count", "page"]


def test_a_job_with_a_reason_of_its_own_runs(run, tmp_path):
    (tmp_path / "text").write_text("two")
    assert run("title=A") == ["count", "page"]
    assert (tmp_path / "out/page").read_text() == "A\n3\n"


def test_where_snakemake_offers_no_way_all_jobs_run_and_are_recorded(run, tmp_path):
    (tmp_path / "text").write_text("two")
    assert run("without=1") == ["count", "page"]
    (tmp_path / "text").write_text("a text of another length")
    assert run("without=1", "title=other") == ["count", "page"]
    assert damaged_steps(Products(tmp_path / "out")) == {}
