"""Every command that the documentation shows is taken out of its file and executed in a copy of the project.

Snakemake makes a dry run, `make` prints what it would do (and those commands are executed in turn), a program parses
its arguments to the last flag, and the shell's own words run as they stand. What cannot run here is listed with its
reason.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import venv
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.workflow.commands import Command, documented, of_make_help
from tests.workflow.project import ROOT

INSTALLS = "installs packages from the network"
OTHER_ENVIRONMENT = "belongs to an environment of its own, where `make test-all` tries the tool"
# The exact text of a command (of its first line), and why it cannot run here.
CANNOT_RUN = {
    "pip install -r envs/requirements-cluster.txt": INSTALLS,
    "pip install wandb": INSTALLS,
    "pip install trackio": INSTALLS,
    "pip install --no-deps -e path/to/visualchat": INSTALLS,
    "snakemake --report archive.html": "needs a finished results folder; test_graph.py makes this report of one",
    "energon prepare --non-interactive --split-parts train:train-.* --sample-type CrudeWebdataset "
    "results/blend/demo/epoch-000": OTHER_ENVIRONMENT,
    "python -m lmms_eval --model visualchat --model_args pretrained=exported/mmca/final --tasks muirbench "
    "--batch_size 16": OTHER_ENVIRONMENT,
    "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{": (
        "asks a server that runs; tests/scripts/serving do so"
    ),
    "cd /data/visualchat": "a folder of the cluster",
    ".venv/bin/pre-commit install": "installs hooks into a git checkout",
}
# What stands for the reader's own words.
PLACEHOLDERS = {"<this repository>": shlex.quote(str(ROOT)), "=PATH": "=raw", "<address>": "https://example.org/cpu"}
TARGETS = {"all", "data", "train", "evaluate", "report"}
DOCUMENTED = documented(ROOT)
COMMANDS = [command for command in DOCUMENTED if command.text.splitlines()[0] not in CANNOT_RUN]


def test_what_cannot_run_is_still_documented():
    assert CANNOT_RUN.keys() <= {command.text.splitlines()[0] for command in DOCUMENTED}
    assert len(CANNOT_RUN) <= 10
    for text in CANNOT_RUN:
        for name in re.findall(r"-r (\S+)", text):
            assert (ROOT / name).is_file(), text


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project as git would take it, with an empty environment where the Makefile has its own."""
    folder = tmp_path_factory.mktemp("commands") / "visualchat"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "raw").mkdir()
    venv.create(folder / ".venv", symlinks=True)
    (folder / ".venv/.ready").touch()
    return folder


@pytest.fixture(scope="module")
def outcomes(copy) -> dict[tuple[str, ...], dict]:
    """What became of every command of Snakemake and of our programs: words to outcome."""
    every = [step for command in COMMANDS + of_make_help(copy) for step in steps(command.text, copy)]
    unique = list(dict.fromkeys(tuple(step) for step in every if step[0] in ("snakemake", "program")))
    planned: set[tuple] = set()
    orders = []
    for kind, *words in unique:
        # Each configuration is planned once; of its further commands Snakemake parses the words.
        plan = planned_from(words)
        orders.append({"kind": kind, "words": words, "only_parsed": kind == "snakemake" and plan in planned})
        planned.add(plan)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/workflow/run_commands.py")],
        input=json.dumps(orders),
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(unique, json.loads(done.stdout), strict=True))


def steps(text: str, copy: Path) -> list[list[str]]:
    """What is executed for a command: a kind and its words.

    The kinds are "snakemake" and "program" (see `run_commands.py`), "bash" with the whole line, and "refused" with the
    reason. Of `make` it is what `make -n` prints of Snakemake and of our programs.
    """
    for placeholder, filled in PLACEHOLDERS.items():
        text = text.replace(placeholder, filled)
    if re.fullmatch(r"python -m scripts\.<\w+> --help", text):
        programs = [path for path in sorted((copy / "scripts").glob("*.py")) if "__main__" in path.read_text()]
        return [["program", f"scripts.{path.stem}", "--help"] for path in programs]
    words = shlex.split(text)
    match words:
        case ["make", *_]:
            return [step for line in made(words, copy) for step in steps(line, copy)]
        case ["snakemake", *rest] | ["python", "-m", "snakemake", *rest]:
            # Snakemake needs to know how many, except for a dry run, which is what is made of it here.
            if not {"--cores", "--jobs", "--profile", "-n", "--lint", "--unlock"} & set(rest):
                return [["refused", "Snakemake asks for --cores"]]
            return [["snakemake", *dry(rest, copy)]]
        case ["python", "-m", module] if is_ours(module):
            return [["program", module, "--help"]]
        case ["python", "-m", module, *rest] if is_ours(module):
            return [["program", module, *rest]]
        case ["git" | "cd" | "export" | "source", *_]:
            return [["bash", text]]
    return [["refused", "how to run this is not known; list it in CANNOT_RUN with the reason"]]


def planned_from(words: list[str]) -> tuple[str, ...]:
    """Of Snakemake's words those that decide what it plans, but for the targets that every configuration has."""
    with_value, without_effect = {"--cores", "--jobs", "--logger"}, {*TARGETS, "-n", "-p"}
    pairs = [(before, word) for before, word in pairwise(["", *words]) if word not in without_effect]
    return tuple(word for before, word in pairs if not {before, word} & with_value)


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ("scripts", "benchmarks", "tests")


def made(words: list[str], copy: Path) -> list[str]:
    """The commands of ours that `make` would run."""
    done = subprocess.run(["make", "-n", *words[1:]], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    found = []
    for line in done.stdout.splitlines():
        # A command inside another one is run for itself; its output is a results folder here.
        found += re.findall(r"\$\(\.venv/bin/(.*?)\)", line)
        outer = re.sub(r'"?\$\(.*?\)"?', "results", line)
        found += re.findall(r"\.venv/bin/(snakemake .*|python -m (?:scripts|benchmarks|tests)\..*)", outer)
    return found


def dry(words: list[str], copy: Path) -> list[str]:
    """Snakemake's words, made a dry run. A cluster's profile is left out where its plugin is not installed."""
    for option in ("--lint", "--unlock"):
        if option in words:
            return words
    if "--profile" in words:
        place = words.index("--profile")
        profile = yaml.safe_load((copy / words[place + 1] / "profile.yaml").read_text())
        if find_spec(f"snakemake_executor_plugin_{profile['executor'].replace('-', '_')}") is None:
            words = [*words[:place], *words[place + 2 :], "--cores", str(profile["jobs"])]
    return words if "-n" in words else [*words, "-n"]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_documented_command_works(command: Command, copy, outcomes):
    check(command, copy, outcomes)


def test_make_help_lists_every_target_and_all_work(copy, outcomes):
    shown = of_make_help(copy)
    phony = re.search(r"^\.PHONY: (.*)$", (copy / "Makefile").read_text(), re.M).group(1).split()
    assert {command.words[1] for command in shown} == set(phony)
    for command in shown:
        check(command, copy, outcomes)


def check(command: Command, copy: Path, outcomes: dict) -> None:
    for kind, *words in steps(command.text, copy):
        assert kind != "refused", f"{command}\n{words[0]}"
        if kind == "bash":
            done = subprocess.run(["bash", "-euc", words[0]], cwd=copy, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            continue
        outcome = outcomes[kind, *words]
        assert outcome["status"] == 0, f"{command}\n{outcome['output']}"
        if kind == "program":
            assert outcome.get("parsed") or "--help" in words, f"{command} never parses its arguments"
            continue
        # An option that takes several values would have eaten the target, or Snakemake taken a value for one.
        meant = [word for before, word in pairwise(["", *words]) if before not in ("--cores", "--jobs")]
        assert outcome["targets"] == [w for w in meant if w in TARGETS or w.startswith("results")], command
        assert all(name.endswith(".yaml") for name in outcome["configfiles"]), command
        assert all("=" in setting for setting in outcome["config"]), command
