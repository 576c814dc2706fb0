"""The recipes of real models: each is planned by Snakemake as a whole, and its training asks for what it needs."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.workflow.project import ROOT

RECIPES = ["paper-7b", "paper-13b", "paper-70b", "qwen3"]


def dry_run(recipe: str, folder, *arguments: str) -> str:
    """What Snakemake would do for a recipe; paths that the recipe takes for given lie below `folder`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(ROOT / f"recipes/{recipe}.yaml"), "--dry-run", "--printshellcmds", "--nocolor"]
    done = subprocess.run([*command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_planned_to_the_report(recipe: str, tmp_path):
    planned = dry_run(recipe, tmp_path, "--cores", "8")
    stats = planned.split("Job stats:", 1)[1]
    for rule in ("fetch", "convert", "plan", "make_model", "train_run", "export", "evaluate_run", "report_page"):
        assert re.search(rf"^{rule} +\d+$", stats, re.MULTILINE), rule
    assert re.search(r"python -m scripts\.train .* --minutes 0$", planned, re.MULTILINE)


@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_the_data_part_of_the_paper_asks_the_queue_at_most_eighty_times(profile: str, tmp_path):
    """A dry run with the groups of the profile; it needs no executor, so the plugin of the profile may be absent."""
    settings = yaml.safe_load((ROOT / f"profiles/{profile}/profile.yaml").read_text())
    groups = [f"{rule}={group}" for rule, group in settings["groups"].items()]
    components = [f"{group}={count}" for group, count in settings["group-components"].items()]
    options = ["--cores", "64", "--groups", *groups, "--group-components", *components, "--", "data"]
    planned = dry_run("paper-7b", tmp_path, *options)
    jobs = int(re.search(r"^total +(\d+)$", planned, re.MULTILINE)[1]) - 1  # without the target
    # The jobs of a group are indented below its name, each with its message.
    in_groups = re.split(r"^\[.*\] Group job ", planned, flags=re.MULTILINE)[1:]
    sizes = [len(re.findall(r"^    Job \d+: ", group, re.MULTILINE)) for group in in_groups]
    alone = len(re.findall(r"^Job \d+: ", planned, re.MULTILINE))
    assert sum(sizes) + alone == jobs > 300
    assert len(sizes) + alone <= 80
    # None is so large that no node has room for it, and shards wait for no other source.
    assert max(sizes) == 8
    assert all(len(set(re.findall(r"packing images of (\w+)", group))) <= 1 for group in in_groups)


@pytest.mark.long
@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_planned_under_every_profile(recipe: str, profile: str, tmp_path):
    plugin = {"slurm": "slurm", "kubernetes": "cluster_generic"}[profile]
    pytest.importorskip(f"snakemake_executor_plugin_{plugin}", reason="pip install -r envs/requirements-cluster.txt")
    planned = dry_run(recipe, tmp_path, "--profile", str(ROOT / f"profiles/{profile}"))
    # The time limit of the profile is the budget of the program.
    assert re.search(r"python -m scripts\.train .* --minutes 1440$", planned, re.MULTILINE)
