"""The recipes: each is explained, estimated and planned by Snakemake as a whole, without a network."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from scripts.config import settings
from tests.workflow.project import ROOT

RECIPES = ["paper-7b", "paper-13b", "paper-70b", "qwen3"]
ALL = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
REAL = [*RECIPES, "own-real"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path_factory):
    """Nothing is asked of the hub, and its cache is empty."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


def program(*arguments: str, folder) -> str:
    """The output of a program that runs in `folder`."""
    command = [sys.executable, "-m", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


@pytest.mark.parametrize("recipe", [name for name in ALL if name not in RECIPES])
def test_every_other_recipe_is_planned_too(recipe: str, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    options = ["--config", "data_path=."] if recipe == "samples" else []
    planned = dry_run(recipe, tmp_path, "--cores", "2", *options)
    stats = planned.split("Job stats:", 1)[1]
    for rule in (
        ("plan", "train_run") if settings.read_configuration(ROOT / f"recipes/{recipe}.yaml").runs else ("plan",)
    ):
        assert re.search(rf"^{rule} +\d+$", stats, re.MULTILINE), rule


@pytest.mark.parametrize("recipe", ALL)
def test_every_recipe_is_explained(recipe: str, tmp_path):
    text = program("scripts.settings", "--explain", str(ROOT / f"recipes/{recipe}.yaml"), folder=tmp_path)
    config = settings.read_configuration(ROOT / f"recipes/{recipe}.yaml")
    for name, model in config.models.items():
        table = text.split(f"model {name}\n")[1]
        assert re.search(rf"^  vision +{re.escape(model.vision)} +written$", table, re.MULTILINE)
    for name, run in config.runs.items():
        table = text.split(f"run {name}\n")[1].split("\n\n")[0]
        assert re.search(
            rf"^  projector +full, projector_learning_rate {run.rate_of('projector'):g} ", table, re.MULTILINE
        )
        assert re.search(rf"^  precision +{run.precision} ", table, re.MULTILINE)
        assert re.search(rf"^  evaluate +{str(run.evaluate).lower()} ", table, re.MULTILINE)
    for name, blend in config.blends.items():
        table = text.split(f"blend {name}\n")[1]
        assert re.search(rf"^  packing +{str(blend.packing).lower()} ", table, re.MULTILINE)


@pytest.mark.parametrize("recipe", REAL)
def test_every_recipe_of_a_real_model_is_estimated(recipe: str, tmp_path):
    text = program("scripts.train", "--estimate", str(ROOT / f"recipes/{recipe}.yaml"), folder=tmp_path)
    for name in settings.read_configuration(ROOT / f"recipes/{recipe}.yaml").runs:
        assert re.search(rf"\b{re.escape(name)}\b", text)


@pytest.mark.parametrize("recipe", REAL)
def test_a_real_decoder_has_its_own_template_and_packed_rows(recipe: str):
    config = settings.read_configuration(ROOT / f"recipes/{recipe}.yaml")
    assert all(blend.packing for blend in config.blends.values())
    templates = {tokens.template for tokens in config.tokens.values()}
    # The paper's decoders are not tuned to chat, and its results are those of its template.
    assert templates == {"paper" if recipe.startswith("paper") else "chat"}
    assert all(
        tokens.tokenizer == model.language for model in config.models.values() for tokens in config.tokens.values()
    )


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
