"""Decide one epoch of a blend, or its held-out part, as a table: every draw, every order, every length.

Reads   records/<dataset>.parquet, tokens/<tokens>/<dataset>.parquet, split/heldout.parquet,
        media/<source>/index.parquet
Writes  plan/<blend>/epoch-000.parquet   one row per conversation in the order of training (or heldout.parquet)
        plan/<blend>/epoch-000.json      its hash, totals, and per dataset what was requested, found, dropped and why

The plan is a pure function of these files, the blend's settings and the epoch. Read one before paying for GPUs:

    python -m scripts.plan --show plan/demo/epoch-000.parquet
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.blending.plan_inputs import media_folders
from scripts.blending.plan_summary import describe, describe_overlap
from scripts.blending.plan_table import read_plan
from scripts.blending.plan_writing import write_plan
from scripts.blending.planning import HELDOUT
from scripts.common.allocation import keep_freed_memory
from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.config.blend import PlanConfig


def main() -> None:
    """Plan, or describe plans."""
    args = _arguments()
    if args.show:
        for path in args.show:
            table, manifest = read_plan(path)
            print(describe(table, manifest))
        return
    settings = load_settings(PlanConfig, args.settings)
    keep_freed_memory()
    manifest = write_plan(
        args.name,
        settings,
        _epoch(args.epoch, settings),
        records=args.records,
        tokens=args.tokens,
        split=args.split,
        media=media_folders(args.media),
        out=args.out,
    )
    _warn(manifest, settings.own)


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--show", nargs="+", type=Path, metavar="PLAN", help="describe plans instead of making one")
    required = ["name", "settings", "epoch", "records", "tokens", "split", "media", "out"]
    arguments.add_argument("--name", help="name of the blend")
    arguments.add_argument("--settings", help="JSON: the section `blends.<name>`, `mixed` of the hold-out; or @file")
    arguments.add_argument("--epoch", help=f"a number, a part such as epoch-000, or {HELDOUT}")
    arguments.add_argument("--records", type=Path, help="folder of the record tables")
    arguments.add_argument("--tokens", type=Path, help="folder of the token tables: tokens/<tokens>")
    arguments.add_argument("--split", type=Path, help="folder of the hold-out")
    arguments.add_argument("--media", nargs="*", action="extend", metavar="SOURCE=FOLDER", help="all media folders")
    arguments.add_argument("--out", type=Path, help="folder plan/<blend>")
    args = arguments.parse_args()
    missing = [f"--{name}" for name in required if getattr(args, name) is None]
    if not args.show and missing:
        arguments.error(f"these flags are required: {' '.join(missing)}")
    return args


def _epoch(text: str, settings: PlanConfig) -> int | None:
    if text == HELDOUT:
        return None
    match = re.fullmatch(r"(?:epoch-)?(\d{1,3})", text)
    if match is None:
        raise UserError(f"--epoch {text}: must be a number, a part such as epoch-000, or {HELDOUT}")
    epoch = int(match[1])
    if epoch > 0 and not settings.redraw:
        raise UserError(f"--epoch {text}: with redraw: false every epoch is epoch-000; plan only that one")
    return epoch


def _warn(manifest: Mapping[str, Any], own: Iterable[str]) -> None:
    """Print what a person should know before training; lines that begin with NOTE also reach the terminal of a run."""
    heldout = manifest["epoch"] == HELDOUT
    if manifest["conversations"] == 0:
        print(
            f"NOTE: the blend {manifest['blend']} holds out no conversation, so nothing will be evaluated on "
            "held-out ones: no loss, no scores. Raise holdout.share, or keep rows of your own data with "
            "custom.<name>.split",
            file=sys.stderr,
        )
        return
    for name, account in manifest["datasets"].items():
        if account["realised"] == 0 and "starts_in_epoch" not in account:
            word = "NOTE" if name in own and heldout else "note"
            reasons = f": {account['dropped']}" if account["dropped"] else ""
            print(f"{word}: {name} gives no conversation to {manifest['epoch']}{reasons}", file=sys.stderr)
        if account.get("overlap") and manifest["epoch"] == 0:
            print(f"NOTE: {name}: {describe_overlap(account['overlap'])}", file=sys.stderr)


if __name__ == "__main__":
    run_program(main)
