"""The graph of rules of a Snakemake run, written as a small file for the report.

Snakemake knows the graph only while it runs, so the Snakefile calls `write` when a run starts, before the first job.
The file has no times and no absolute paths, and includes the jobs that are already done: it is the same whether
everything is built at once or in several runs. Runs whose targets do not include the report do not write it.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from scripts.common.files import write_json

FILE = "graph.json"
LAST = "report"


class Rule(Protocol):
    """The attributes of a rule of Snakemake that are used here; `output` are patterns of files."""

    name: str
    message: str | None
    snakefile: str
    shellcmd: str | None
    output: Collection[Any]


class Job(Protocol):
    """The attributes of a job of Snakemake that are used here; `output` are its files, in the order of the rule."""

    rule: Rule
    output: Collection[Any]


class Graph(Protocol):
    """Snakemake's graph: its jobs, and for each job those that it depends on, with the files that it reads of them."""

    jobs: Iterable[Job]
    dependencies: Mapping[Job, Mapping[Job, Iterable[Any]]]


def write(graph: Graph, root: str, command: Sequence[str]) -> None:
    """Write `<root>/graph.json` if the graph contains the report; `command` is the command line of Snakemake."""
    rules = describe(graph)
    if any(rule["program"] == LAST for rule in rules.values()):
        value = {"v": 1, "command": printable_command(command), "snakemake": version("snakemake"), "rules": rules}
        write_json(Path(root) / FILE, value)


def describe(graph: Graph) -> dict[str, dict[str, Any]]:
    """Every rule that runs a program, by name.

    Returns:
        `jobs` (their number), `stage` (name of its .smk file), `program`, `message`, and `reads`: the rules that it
        depends on, each with the number of jobs that do.
    """
    rules: dict[str, dict[str, Any]] = {}
    for job in graph.jobs:
        rule = job.rule
        programs = re.findall(r"-m scripts\.(\w+)", rule.shellcmd or "")
        if not programs:
            continue
        entry = rules.setdefault(
            rule.name,
            {
                "jobs": 0,
                "reads": Counter(),
                "stage": Path(rule.snakefile).stem,
                "program": programs[0],
                "message": rule.message or "",
            },
        )
        entry["jobs"] += 1
        entry["reads"].update({read.rule.name for read in graph.dependencies[job]} - {rule.name})
    return {name: entry | {"reads": dict(sorted(entry["reads"].items()))} for name, entry in sorted(rules.items())}


def break_cycles(rules: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """The dependencies between rules without cycles, and the dependencies that were left out for that.

    Jobs have no cycles, but rules may have: some sources are fetched before the subset of images is selected, and
    others after. A dependency in a cycle is left out if some jobs of its rule do not have it.
    """
    reads = {name: [read for read in rule["reads"] if read in rules] for name, rule in rules.items()}
    partial = [
        (name, read) for name in reads for read in reads[name] if rules[name]["reads"][read] < rules[name]["jobs"]
    ]
    left_out = [(name, read) for name, read in partial if name in ancestors(reads, read)]
    return {
        name: sorted(read for read in found if (name, read) not in left_out) for name, found in sorted(reads.items())
    }, left_out


def ancestors(reads: Mapping[str, Iterable[str]], name: str) -> set[str]:
    """Everything that `name` depends on, directly or not."""
    found: set[str] = set()
    pending = list(reads[name])
    while pending:
        rule = pending.pop()
        if rule not in found:
            found.add(rule)
            pending.extend(reads[rule])
    return found


def printable_command(words: Sequence[str]) -> str:
    """A command line as a person would type it, with paths relative to the working directory if they are below it."""
    here = os.getcwd() + os.sep
    return shlex.join(["snakemake", *(word.removeprefix(here) for word in words[1:])])
