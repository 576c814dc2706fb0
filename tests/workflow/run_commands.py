"""Runs documented commands in a copy of the project, each in a process forked from one that has the libraries loaded.

    python tests/workflow/run_commands.py < commands.json > outcomes.json

It runs in the copy's folder. A command is {"kind", "words", "only_parsed"}; its outcome is {"status", "output"} and,
for Snakemake, what the words were understood as: {"targets", "configfiles", "config"}.

    snakemake   Snakemake itself, on `words`, or its parser alone
    program     `python -m`: the program as it is, until it has parsed its arguments, to the last flag, so that an
                unknown one fails, which `--help` would hide
"""

import argparse
import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from typing import NoReturn

# What the commands import anyway, imported once.
LIBRARIES = (
    "snakemake.cli",
    "numpy",
    "pyarrow.parquet",
    "PIL.Image",
    "pydantic",
    "jinja2",
    "transformers.modeling_utils",
)
AT_ONCE = 2


def main() -> None:
    commands = json.load(sys.stdin)
    sys.path.insert(0, os.getcwd())
    for name in LIBRARIES:
        importlib.import_module(name)
    waiting, running, outcomes = list(enumerate(commands)), {}, {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            number, command = waiting.pop(0)
            files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
            if not (process := os.fork()):
                run(command, *files)
            running[process] = number, *files
        process, status = os.wait()
        number, output, understood = running.pop(process)
        output.seek(0)
        understood.seek(0)
        outcomes[number] = {"status": os.waitstatus_to_exitcode(status), "output": output.read()[-4000:]}
        outcomes[number] |= json.loads(understood.read() or "{}")
    json.dump([outcomes[number] for number in range(len(commands))], sys.stdout)


def run(command: dict, output, understood) -> NoReturn:
    """Run one command in this forked process, and end it."""
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    status: object = 2
    try:
        {"snakemake": snakemake, "program": program}[command["kind"]](command, understood)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:  # noqa: BLE001 (as the interpreter: whatever ends a program is printed)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    understood.flush()
    os._exit(status if isinstance(status, int) else 1)


def snakemake(command: dict, understood) -> None:
    from snakemake.cli import main as run_snakemake
    from snakemake.cli import parse_args

    words = command["words"]
    sys.argv = ["snakemake", *words]
    _, args = parse_args(words)
    found = {"targets": args.targets, "configfiles": args.configfile or [], "config": args.config or []}
    json.dump({key: list(map(str, value)) for key, value in found.items()}, understood)
    understood.flush()
    if command["only_parsed"]:
        sys.exit(0)
    run_snakemake(words)


def program(command: dict, understood) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(self, *arguments, **options) -> NoReturn:
        parse(self, *arguments, **options)
        json.dump({"parsed": True}, understood)
        sys.exit(0)

    argparse.ArgumentParser.parse_args = parse_and_end
    sys.argv = command["words"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
