"""Generate docs/rules.md, the reference of all rules: what each does, reads and writes, and with which program.

    python -m scripts.workflow.rules_reference            prints it
    python -m scripts.workflow.rules_reference --write    writes it, and scripts/README.md, the list of all programs

It is taken from the graphs that Snakemake builds for two configurations which together use every rule: the miniature
with preprocessed and encoded images, replay and a decoder of the user, and a subset of published data. So a file is
listed under "reads" if some job depends on it. The graphs are built in an empty folder, and no job is run.
"""

import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.files import atomic
from scripts.common.fingerprint import ROOT
from scripts.workflow import program_list
from scripts.workflow.graph import Graph, break_cycles, describe

PAGE = "docs/rules.md"
_STAGES = {
    "sources": "Raw files",
    "media": "Images",
    "replay": "Replay",
    "records": "Conversations",
    "blends": "Plans and blends",
    "models": "Models",
    "train": "Training",
    "evaluate": "Evaluation",
    "lock": "Provenance",
    "report": "Report",
}
_HEAD = """# Rules

Generated from the graph by `python -m scripts.workflow.rules_reference --write`. A rule runs one program, which can
also be run by hand: `python -m scripts.<program> --help`. Paths are below the results root; `{...}` is a wildcard. A
rule runs again when a file that it reads has changed, or the settings or the code that it uses; `snakemake -n` prints
the reason.
"""


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--write", action="store_true", help="write both pages instead of printing")
    pages = generated()
    if not arguments.parse_args().write:
        sys.stdout.write(pages[PAGE])
        return
    for name, text in pages.items():
        with atomic(ROOT / name, "w") as file:
            file.write(text)


def generated() -> dict[str, str]:
    """The pages that are generated from the rules: path in the repository to text."""
    every = rules()
    return {PAGE: page(every), program_list.PAGE: program_list.program_list(every, _STAGES)}


def rules() -> dict[str, dict[str, Any]]:
    """Every rule by name: stage, program, message, and the files that it reads and makes, as patterns."""
    default = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    run = next(iter(default["runs"].values())) | {"pixels": True}
    model = next(iter(default["models"].values()))
    blend = default["blends"][run["blend"]]
    default["models"]["pretrained"] = {"vision": model["vision"], "language": "a-decoder"}
    default["blends"]["pretrained"] = blend | {"tokens": "pretrained"}
    pretrained = {"model": "pretrained", "blend": "pretrained"}
    default["runs"] = {"pixels": run, "features": run | {"features": True}, "pretrained": pretrained}
    default["replay"] = {"talk": {"model": run["model"]}}
    blend["datasets"]["talk"] = {}
    subset = yaml.safe_load((ROOT / "recipes/subset.yaml").read_text(encoding="utf-8"))
    merged: dict[str, dict[str, Any]] = {}
    for config in (default, subset):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
            for name, rule in _read(_graph(), config["results"]).items():
                known = merged.setdefault(name, rule)
                known["reads"] = sorted({*known["reads"], *rule["reads"]})
                known["after"] |= rule["after"]
    order = TopologicalSorter(break_cycles({name: rule | {"reads": rule["after"]} for name, rule in merged.items()})[0])
    return {name: merged[name] for name in order.static_order()}


def _graph() -> Graph:
    """Snakemake's graph of all targets, for `config.yaml` in the working directory."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=(Path("config.yaml").resolve(),)),
            snakefile=ROOT / "Snakefile",
        )
        # Printing the graph is the only call of Snakemake's API that builds it and does nothing else.
        with contextlib.redirect_stdout(io.StringIO()):
            workflow.dag(dag_settings=DAGSettings(forceall=True)).printrulegraph()
        return workflow._workflow.dag


def _read(graph: Graph, root: str) -> dict[str, dict[str, Any]]:
    """The rules of a graph; `after` has the rules that each depends on, `reads` and `makes` the patterns of files."""
    rules = {
        name: rule | {"after": rule["reads"], "reads": set(), "makes": []} for name, rule in describe(graph).items()
    }
    for job in graph.jobs:
        if job.rule.name not in rules:
            continue
        rule = rules[job.rule.name]
        rule["makes"] = [_pattern(file, root) for file in job.rule.output]
        for read, files in graph.dependencies[job].items():
            patterns = {
                str(file): _pattern(form, root) for file, form in zip(read.output, read.rule.output, strict=True)
            }
            rule["reads"] |= {patterns[str(file)] for file in files}
    return rules


def _pattern(file: Any, root: str) -> str:
    # The constraint of a wildcard, as in "{number,\\d{5}}", may contain braces.
    return re.sub(r"\{(\w+),(?:[^{}]|\{[^{}]*\})*\}", r"{\1}", str(file)).removeprefix(f"{root}/")


def page(rules: Mapping[str, Mapping[str, Any]]) -> str:
    """The reference as Markdown."""
    lines = [_HEAD]
    for stage, title in _STAGES.items():
        lines += [f"## {title}", "", f"`rules/{stage}.smk`", ""]
        for name, rule in rules.items():
            if rule["stage"] == stage:
                message = re.sub(r"\{wildcards\.(\w+)\}", r"*\1*", rule["message"])
                lines += [f"### `{name}`", "", f"{message}: `scripts/{rule['program']}.py`.", ""]
                lines += ["| reads | makes |", "|---|---|", f"| {_list(rule['reads'])} | {_list(rule['makes'])} |", ""]
    return "\n".join(lines).rstrip() + "\n"


def _list(files: Iterable[str]) -> str:
    return "<br>".join(f"`{file}`" for file in files) or "the configuration"


if __name__ == "__main__":
    run_program(main)
