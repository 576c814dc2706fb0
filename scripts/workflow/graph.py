"""The graph of rules that a run of Snakemake really builds, as a small file for the report.

Snakemake knows it only while it runs, so the Snakefile calls `write` as a run starts, before the first job. The file
holds no times and no absolute paths, and the jobs that had nothing to do are in it as well: it is the same whether
everything is built at once or piece by piece. Runs that end before the report leave it alone.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from scripts.common.files import write_json

FILE = "graph.json"
LAST = "report_page"


class Rule(Protocol):
    """What is asked of a rule of Snakemake."""

    name: str
    message: str | None
    snakefile: str
    shellcmd: str | None


class Job(Protocol):
    """What is asked of a job of Snakemake."""

    rule: Rule


class Graph(Protocol):
    """What is asked of Snakemake's graph: its jobs, and for each job those that it depends on."""

    jobs: Iterable[Job]
    dependencies: Mapping[Job, Iterable[Job]]


def write(jobs: Graph, root: str, command: Sequence[str]) -> None:
    """Write `<root>/graph.json` if this run reaches the report; `command` is the command line of Snakemake."""
    rules = describe(jobs)
    if LAST in rules:
        value = {"v": 1, "command": printable_command(command), "snakemake": version("snakemake"), "rules": rules}
        write_json(Path(root) / FILE, value)


def describe(jobs: Graph) -> dict[str, dict[str, Any]]:
    """Every rule that runs a program: how many jobs it has, its stage, program and message, and the rules that it
    depends on, each with the number of jobs that do."""
    rules: dict[str, dict[str, Any]] = {}
    for job in jobs.jobs:
        rule = job.rule
        if rule.shellcmd is None:
            continue
        programs = re.findall(r"-m scripts\.(\w+)", rule.shellcmd)
        entry = rules.setdefault(
            rule.name,
            {
                "jobs": 0,
                "reads": Counter(),
                "stage": Path(rule.snakefile).stem,
                "program": programs[0] if programs else "",
                "message": rule.message or "",
            },
        )
        entry["jobs"] += 1
        entry["reads"].update({read.rule.name for read in jobs.dependencies[job]} - {rule.name})
    return {name: entry | {"reads": dict(sorted(entry["reads"].items()))} for name, entry in sorted(rules.items())}


def break_cycles(rules: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """What each of these rules depends on, without circles, and the dependencies that were left out for it.

    Jobs never wait for each other in a circle; rules may: some sources are fetched before it is decided which images
    are wanted, and others after. Then some jobs of a rule of the circle lack the dependency, and it is left out.
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
        one = pending.pop()
        if one not in found:
            found.add(one)
            pending.extend(reads[one])
    return found


def printable_command(words: Sequence[str]) -> str:
    """A command line as a person would type it: paths relative to the working directory where they lie in it."""
    here = os.getcwd() + os.sep
    return shlex.join(["snakemake", *(word.removeprefix(here) for word in words[1:])])
