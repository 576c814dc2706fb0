"""Train a model on a blend: start the ranks, show their progress, and report how the run ended.

    reads   models/<model>/, the blend's parts (one per epoch), its held-out part; with `start` another run's result
    writes  <out>/state/<fingerprint>/   checkpoints, metrics.jsonl, TensorBoard events, settings, log
            <out>/finished.json          last, and only when the run has reached its end

It may be killed at any moment, also with `kill -9`, and repeated: the same command continues from the last checkpoint
and ends with the same losses and the same weights, bit for bit, as a run that was never interrupted. The folder of the
state is named by a fingerprint of what decides the numbers, so another learning rate starts a separate run beside it,
and another number of ranks does not. A finished run returns at once.

`--estimate RECIPE` prints instead what the runs of a recipe need: memory, GPUs and days (see `scripts/estimate.py`).
`--dry-run-steps N`, beside the arguments of a run or with a RECIPE, takes N steps and prints time, memory and whether
the loss falls (see `scripts/training/dry_run.py`); nothing is kept.

Exit status: 0 finished; 75 not finished but saved, because it was asked to stop (SIGTERM, SIGUSR1, Ctrl-C) or the
time of --minutes was over; 1 an error, with a message; 2 a bug in this program.
"""

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import atomic, file_sha256, read_json, write_json
from scripts.config.run import RunConfig
from scripts.training import devices, launch, nodes, watchdog
from scripts.training.console import ConsoleReporter
from scripts.training.dry_run import describe, read_facts, shortened
from scripts.training.fingerprint import input_hashes, run_fingerprint
from scripts.training.plan_check import differences, plan_facts
from scripts.training.run_inputs import open_blend, run_settings, start_of
from scripts.training.runlock import RunLock
from scripts.training.start import Start, is_taken, start_change, take_start
from scripts.training.trackers import check_installed

NOT_FINISHED = 75
_DESCRIPTION = ("settings.json", "inputs.json", "plans.json", "environment.json")
_DRY_RUN = "take so many steps, print time, memory and whether the loss falls, and keep nothing (20 show enough)"
_LOG_SHOWN = 2000
_LIBRARIES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "pillow")


def train(args: argparse.Namespace, settings: RunConfig) -> int:
    """Train to the end of the run, or until it must stop, and return the exit status.

    Raises:
        UserError: inputs do not fit, another process trains this run, or the run cannot succeed.
    """
    deadline = time.time() + 60 * args.minutes if args.minutes else None
    check_installed(settings.trackers)
    blend, parts = open_blend(args, settings)
    start = start_of(args, settings)
    inputs = input_hashes(args.model, blend, args.heldout, start)
    fingerprint = run_fingerprint(settings, inputs)
    state = args.out / "state" / fingerprint
    if is_finished(state, start):
        print(f"{args.name} is finished already; its state is {state}", file=sys.stderr)
        publish(state, args.out)
        return 0

    topology = nodes.detect_topology(settings.nodes, settings.ranks, os.environ, nodes.run_command)
    arguments = worker_arguments(args, settings, fingerprint, state, blend, deadline)
    if topology.is_secondary:
        return join_run(topology, arguments, state, settings)
    lock = RunLock(state / "lock")
    lock.take_all()
    gpus = devices.reserve_gpus(args.name, settings.ranks // settings.nodes, os.environ, settings.precision)
    try:
        raise_recorded_failure(state, settings)
        write_json(state / "settings.json", settings.model_dump(mode="json"))
        readers = {part.folder: part for part in parts}
        facts = [plan_facts(readers[folder]) for folder in blend]
        warn_changed_inputs(args.name, state, facts, start)
        if start:
            take_start(state, start)
        write_json(state / "inputs.json", inputs)
        write_json(state / "plans.json", facts)
        write_json(state / "environment.json", environment())
        shutil.rmtree(state / "ranks", ignore_errors=True)
        reporter = ConsoleReporter(args.name)
        ranks, threads, log = settings.ranks, settings.threads, state / "log.txt"
        status = launch.run_ranks(topology, ranks, threads, arguments, log, reporter.show, gpus.names)
        reporter.close()
        if is_finished(state, start):
            publish(state, args.out)
            return 0
        return unfinished(state, settings, status)
    finally:
        gpus.release()
        lock.release()


def dry_run(args: argparse.Namespace, settings: RunConfig) -> int:
    """Take the first steps of a run, print what they show, and keep nothing; return the exit status.

    Raises:
        UserError: inputs do not fit, a loss is not finite, or there is not enough memory.
    """
    if settings.nodes > 1:
        raise UserError(
            "a dry run uses one node: give `nodes: 1` and the `ranks` of one node, such as --execution "
            f'\'{{"nodes": 1, "ranks": {settings.ranks // settings.nodes}}}\''
        )
    settings = shortened(settings, args.dry_run_steps)
    start = None
    if args.start is not None and not (args.start / "finished.json").is_file():
        print(f"{args.name}: {args.start} is not trained yet, so this begins with the model as it was made")
    else:
        start = start_of(args, settings)
    blend, _ = open_blend(args, settings)
    with tempfile.TemporaryDirectory(prefix="visualchat-dry-run-") as folder:
        state = Path(folder)
        if start:
            take_start(state, start)
        arguments = [*worker_arguments(args, settings, "dry-run", state, blend, None)]
        arguments += ["--dry-run-steps", str(args.dry_run_steps)]
        topology = nodes.detect_topology(1, settings.ranks, os.environ, nodes.run_command)
        gpus = devices.reserve_gpus(args.name, settings.ranks, os.environ, settings.precision)
        reporter = ConsoleReporter(args.name)
        try:
            ranks, threads, log = settings.ranks, settings.threads, state / "log.txt"
            status = launch.run_ranks(topology, ranks, threads, arguments, log, reporter.show, gpus.names)
        finally:
            reporter.close()
            gpus.release()
        facts = read_facts(state)
        if facts is None:
            return without_result(state, settings, status)
        print(describe(facts, settings, args.name), flush=True)
        return 0 if len(facts["losses"]) == min(args.dry_run_steps, facts["planned_steps"]) else NOT_FINISHED


def without_result(state: Path, settings: RunConfig, status: int) -> int:
    """Print or raise why a dry run ended before its end; return the exit status.

    Raises:
        UserError: as for `unfinished`.
        RuntimeError: a rank crashed.
    """
    ends = [read_json(path) for path in (state / "ranks").glob("*.json")]
    statuses = {end["status"] for end in ends}
    if len(ends) == settings.ranks and ("error" in statuses or "crash" not in statuses):
        return unfinished(state, settings, status)
    # The log is removed with everything else of a dry run.
    sys.stderr.write((state / "log.txt").read_text(errors="replace")[-_LOG_SHOWN:])
    if crashes := [end for end in ends if end["status"] == "crash"]:
        raise RuntimeError(f"a rank crashed; the end of its log is above\n{crashes[0]['message']}")
    raise UserError(
        "the ranks of the dry run ended without an error message: killed, perhaps out of memory. Lower micro_batch, "
        "set gradient_checkpointing, or see what `python -m scripts.train --estimate` counts"
    )


def worker_arguments(
    args: argparse.Namespace,
    settings: RunConfig,
    fingerprint: str,
    state: Path,
    blend: Sequence[Path],
    deadline: float | None,
) -> list[str]:
    """The command line of the ranks, the same on every node. `deadline`: when they must have ended, in Unix time."""
    arguments = ["--name", args.name, "--fingerprint", fingerprint, "--settings", settings.model_dump_json()]
    paths = {"--model": args.model, "--heldout": args.heldout, "--root": args.root, "--state": state}
    for flag, path in paths.items():
        arguments += [flag, str(path)]
    arguments += ["--blend", *map(str, blend)]
    arguments += ["--pixels", *map(str, args.pixels)] if args.pixels else []
    arguments += ["--features", *map(str, args.features)] if args.features else []
    arguments += ["--deadline", str(deadline)] if deadline else []
    return [*arguments, "--hang-timeout", str(args.hang_timeout)]


def join_run(topology: nodes.Topology, arguments: Sequence[str], state: Path, settings: RunConfig) -> int:
    """Add this node's ranks to the run that node 0 launches; return the exit status, whose reason node 0 prints."""
    node = topology.node_rank
    launch.wait_for_launcher(state / "lock", node)
    log = state / f"log.node-{node}.txt"
    launch.run_ranks(topology, settings.ranks, settings.threads, arguments, log, lambda message: None)
    # Not torchrun's exit status: it fails when node 0, which holds its store, is the first to end.
    share = settings.ranks // settings.nodes
    files = [state / "ranks" / f"{rank}.json" for rank in range(node * share, (node + 1) * share)]
    ends = {read_json(path)["status"] if path.exists() else "killed" for path in files}
    if ends <= {"finished", "stopped"}:
        return NOT_FINISHED if "stopped" in ends else 0
    print(f"node {node} ended early; node 0 prints the reason, and this node's log is {log}", file=sys.stderr)
    return 1


def warn_changed_inputs(name: str, state: Path, facts: list[dict[str, Any]], start: Start | None) -> None:
    """Print a message if the run starts anew, beside an unfinished one, because of what it reads.

    That is its plan, or the result of the run that it starts from.
    """
    if (state / "plans.json").exists():
        return
    for other in sorted(state.parent.iterdir()):
        if other == state or not (other / "plans.json").exists() or (other / "finished.json").exists():
            continue
        pairs = zip(read_json(other / "plans.json"), facts, strict=False)
        if changes := next(filter(None, (differences(*pair) for pair in pairs)), ""):
            reason = f"its plan has changed ({changes})"
        elif start and (change := start_change(other, start)):
            reason = change
        else:
            continue
        print(f"{name} starts anew, beside the unfinished {other}: {reason}", file=sys.stderr)


def is_finished(state: Path, start: Start | None = None) -> bool:
    """Whether the run of this state has finished, and its description and undamaged weights still exist.

    Those of `start`, which it began with, are among them.
    """
    if not all((state / name).is_file() for name in ("finished.json", *_DESCRIPTION)):
        return False
    finished = read_json(state / "finished.json")
    for entry in (finished["final"], finished["best"]):
        weights = state.parents[1] / entry["weights"]
        if not weights.is_file() or file_sha256(weights) != entry["sha256"]:
            return False
    return start is None or is_taken(state, start)


def publish(state: Path, out: Path) -> None:
    """Copy the state's `finished.json` to where the next steps read it."""
    with atomic(out / "finished.json") as file:
        file.write((state / "finished.json").read_bytes())


def raise_recorded_failure(state: Path, settings: RunConfig) -> None:
    """Raise the recorded error of an attempt that could not succeed, unless the settings have changed since.

    Raises:
        UserError: there is such an error.
    """
    path = state / "failure.json"
    if path.exists():
        failure = read_json(path)
        if failure["settings"] == settings.model_dump(mode="json"):
            raise UserError(f"{failure['message']} (recorded failure; remove {path} to try again)")
        path.unlink()


def unfinished(state: Path, settings: RunConfig, status: int) -> int:
    """Print or raise why the ranks ended early; return the exit status of a run that stopped in order.

    `status` is the exit status of torchrun or srun.

    Raises:
        UserError: the error of the first rank that failed; or a rank hung, or was killed.
        RuntimeError: a rank crashed.
    """
    if hang := watchdog.hang_report(state / "ranks", settings.ranks):
        raise UserError(f"a rank made no progress and was ended; the same command continues. {hang}")
    files = sorted((state / "ranks").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    ends = [read_json(path) for path in files]
    if errors := [end for end in ends if end["status"] == "error"]:
        if errors[0]["permanent"]:
            failure = {"message": errors[0]["message"], "settings": settings.model_dump(mode="json")}
            write_json(state / "failure.json", failure)
        raise UserError(errors[0]["message"])
    # A rank without a file was killed, and the others failed only because of that.
    killed = len(ends) < settings.ranks
    if not killed and (crashes := [end for end in ends if end["status"] == "crash"]):
        raise RuntimeError(f"a rank crashed; the full log is {state / 'log.txt'}\n{crashes[0]['message']}")
    if not killed and any(end["status"] == "stopped" for end in ends):
        print("stopped and saved; the same command continues", file=sys.stderr)
        return NOT_FINISHED
    raise UserError(
        f"the ranks ended without an error message (torchrun: exit status {status}): killed, perhaps out of memory. "
        f"The same command continues from the last checkpoint; the log is {state / 'log.txt'}"
    )


def environment() -> dict[str, Any]:
    """What the numbers of a run may depend on besides its settings: versions and the machine."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def main() -> int:
    """Run the program."""
    if "--estimate" in sys.argv[1:]:
        sys.argv.remove("--estimate")
        # By name, so that its code does not count as code of this program, whose change would rerun training.
        importlib.import_module("scripts.estimate").main()
        return 0
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    if "--dry-run-steps" in given and "--name" not in given:
        return dry_run_recipe()
    arguments = parser(__doc__)
    arguments.add_argument("--name", required=True, help="name of the run")
    arguments.add_argument("--settings", required=True, help="section `runs.<name>` as JSON, or @file")
    help_execution = "further keys of the section as JSON, or @file: those that do not change the numbers"
    arguments.add_argument("--execution", default="{}", help=help_execution)
    arguments.add_argument("--model", required=True, type=Path, help="folder models/<model>")
    blend = "blend folders, one per epoch; a single one repeats"
    arguments.add_argument("--blend", required=True, type=Path, nargs="+", help=blend)
    arguments.add_argument("--heldout", required=True, type=Path, help="folder blend/<blend>/heldout")
    arguments.add_argument("--root", required=True, type=Path, help="results root, which references are relative to")
    start = "folder train/<run> of the finished run whose weights this one begins with (`start` in the settings)"
    arguments.add_argument("--start", type=Path, help=start)
    pixels = "manifests pixels/<encoder>/*.json: read the decoded images they describe instead of decoding them"
    arguments.add_argument("--pixels", type=Path, nargs="*", default=[], help=pixels)
    features = "manifests features/<encoder>/<output>/*.json: read the image features they describe (`features: true`)"
    arguments.add_argument("--features", type=Path, nargs="*", default=[], help=features)
    arguments.add_argument("--out", required=True, type=Path, help="folder to write: train/<run>")
    minutes = "save and stop, with exit status 75, before so many minutes have passed (default: 0, no limit)"
    arguments.add_argument("--minutes", type=duration, default=0.0, help=minutes)
    timeout = "minutes without any progress after which a rank counts as hung and the job is ended (default: 60)"
    arguments.add_argument("--hang-timeout", type=duration, default=60.0, help=timeout)
    arguments.add_argument("--dry-run-steps", type=positive, default=0, metavar="N", help=_DRY_RUN)
    args = arguments.parse_args()
    if not args.hang_timeout:
        arguments.error("--hang-timeout: must be more than 0 minutes")
    # Until the ranks run there is nothing to save.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: sys.exit(NOT_FINISHED))
    settings = run_settings(args.settings, args.execution)
    return dry_run(args, settings) if args.dry_run_steps else train(args, settings)


def dry_run_recipe() -> int:
    """`--dry-run-steps N RECIPE`: a dry run of every run of a configuration, or of one; return the exit status."""
    arguments = parser(__doc__)
    arguments.add_argument("configuration", type=Path, help="config.yaml or a recipe, whose data are built")
    arguments.add_argument("--run", help="only this run (default: all)")
    arguments.add_argument("--dry-run-steps", type=positive, metavar="N", help=_DRY_RUN)
    options = arguments.parse_args()
    # By name, as for --estimate.
    recipe_runs = importlib.import_module("scripts.estimation.recipe_runs").recipe_runs
    status = 0
    for args, settings in recipe_runs(options.configuration, options.run, options.dry_run_steps):
        status = max(status, dry_run(args, settings))
    return status


def positive(text: str) -> int:
    """A number above zero.

    Raises:
        ValueError: it is not.
    """
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def duration(text: str) -> float:
    """A number of minutes, zero or more.

    Raises:
        ValueError: it is not.
    """
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


if __name__ == "__main__":
    run_program(main)
