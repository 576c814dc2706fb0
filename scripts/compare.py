"""Compare two evaluations of the same suites question by question, with intervals and p-values.

Reads   two folders evaluate/RUN
Writes  a table to standard output; with --out a JSON file

Every metric is recomputed on the questions that both answered. The interval of the difference is a paired bootstrap, p
comes from an approximate randomisation test (scripts/evaluation/resampling.py); all turns of a conversation, and all
versions of a question, are resampled together. With many metrics and suites some p are small by chance: compare them
with the significance level divided by the number of tests (Bonferroni).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json, read_json_lines, write_json
from scripts.evaluation.metric_registry import METRICS
from scripts.evaluation.results import HELDOUT, METRICS_FILE
from scripts.evaluation.scoring import MetricSpec, compare, metric_spec
from scripts.evaluation.turns import Turn

Checkpoint = tuple[Path, str]
"""The folder `evaluate/<run>` and the name of a checkpoint in it."""


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    first, second = parse_checkpoint(args.first), parse_checkpoint(args.second)
    suites = [name for name in shared_suites(first, second) if not args.suite or name in args.suite]
    if not suites:
        raise UserError(f"{args.first} and {args.second} have no suite in common")
    specs = [metric_spec(name) for name in args.metric]
    result = {name: compare_suite(first, second, name, specs, args.confidence) for name in suites}
    print("\n".join(table(result, args.confidence)))
    if args.out:
        write_json(args.out, {"v": 1, "first": args.first, "second": args.second, "suites": result})


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    help_run = "evaluate/RUN, or evaluate/RUN:CHECKPOINT (default: final)"
    result.add_argument("first", metavar="FIRST", help=help_run)
    result.add_argument("second", metavar="SECOND", help=help_run)
    result.add_argument("--suite", action="append", default=[], help="suite to compare, repeatable (default: all)")
    result.add_argument(
        "--metric", action="append", default=[], help="metric, repeatable (default: those of the suite)"
    )
    result.add_argument("--confidence", type=float, default=0.95, help="confidence of the intervals")
    result.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")
    return result


def parse_checkpoint(value: str) -> Checkpoint:
    """Parse RUN or RUN:CHECKPOINT."""
    folder, colon, checkpoint = value.rpartition(":")
    return (Path(folder), checkpoint) if colon else (Path(value), "final")


def shared_suites(first: Checkpoint, second: Checkpoint) -> list[str]:
    """The suites that both evaluations have, held-out questions included.

    Raises:
        UserError: a folder holds no evaluation of the checkpoint.
    """
    suites: list[list[str]] = []
    for folder, checkpoint in (first, second):
        checkpoints = read_json(folder / METRICS_FILE)["checkpoints"]
        if checkpoint not in checkpoints:
            known = ", ".join(sorted(checkpoints))
            raise UserError(f"{folder} has no evaluation of checkpoint {checkpoint!r}; it has {known}")
        suites.append([HELDOUT, *checkpoints[checkpoint]["suites"]])
    return [name for name in suites[0] if name in suites[1]]


def compare_suite(
    first: Checkpoint, second: Checkpoint, suite: str, specs: Sequence[MetricSpec], confidence: float
) -> dict[str, dict[str, Any]]:
    """First minus second by metric, see `scoring.compare`; without `specs` the metrics of the suite.

    Raises:
        UserError: a result file is missing.
    """
    ours, theirs = (read_turns(folder / suite / f"{checkpoint}.jsonl") for folder, checkpoint in (first, second))
    return compare(ours, theirs, specs or suite_metrics(first, suite), confidence)


def suite_metrics(evaluated: Checkpoint, suite: str) -> list[MetricSpec]:
    """The metrics that a suite was scored with, with default options; metrics of a task's own code are left out."""
    if suite == HELDOUT:
        return [metric_spec("exact_match")]
    folder, checkpoint = evaluated
    rows = read_json(folder / suite / f"{checkpoint}.json").get("metrics", {})
    names = dict.fromkeys(name.partition("@")[0] for name in rows if "," not in name)
    return [metric_spec(name) for name in names if name in METRICS]


def read_turns(path: Path) -> list[Turn]:
    """The turns of a `.jsonl` file.

    Raises:
        UserError: it does not exist.
    """
    try:
        lines = read_json_lines(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: evaluate the run again") from None
    return [Turn.of(line) for line in lines]


def table(result: dict[str, dict], confidence: float) -> list[str]:
    """The differences as lines of text."""
    lines = [
        f"{'suite':<16} {'metric':<20} {'difference':>10}  {f'{confidence:.0%} interval':<20} {'p':>7} {'units':>6}"
    ]
    for suite, metrics in result.items():
        for name, row in metrics.items():
            interval = "{:+.3f} to {:+.3f}".format(*row["interval"]) if row["interval"] else ""
            lines.append(
                f"{suite:<16} {name:<20} {row['difference']:>+10.3f}  {interval:<20} {row['p']:>7.4f} {row['n']:>6}"
            )
    return lines


if __name__ == "__main__":
    run_program(main)
