"""Checks a results root against the passports of its runs: every file there, of its size and with its sha256.

    python -m scripts.verify --root results            reads everything
    python -m scripts.verify --root results --quick    compares sizes only, in a moment

Each difference is one line that says which file, what it is and what it should be. Code and libraries that have changed
since are told as notes; with --strict they count as differences. Checkpoints, logs, previews and the report are in no
passport: they tell times, or can be made again from what is.

Exit status: 0 all is as it was; 1 something differs, or there is nothing to check.
"""

import sys
from pathlib import Path

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.formatting import format_bytes
from scripts.provenance.verification import check

SHOWN = 100


def main() -> int:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, default=Path("results"), metavar="FOLDER", help="results root")
    arguments.add_argument("--quick", action="store_true", help="compare sizes only")
    arguments.add_argument("--strict", action="store_true", help="changed code and libraries are differences too")
    arguments.add_argument("--raw", type=Path, metavar="FOLDER", help="check your own raw files (data_path) as well")
    args = arguments.parse_args()
    verdict = check(args.root, args.quick, args.raw)
    differences = verdict.differences + (verdict.notes if args.strict else [])
    for line in differences[:SHOWN]:
        print(line)
    if len(differences) > SHOWN:
        print(f"... and {len(differences) - SHOWN:,} more")
    for line in [] if args.strict else verdict.notes:
        print(f"note: {line}", file=sys.stderr)
    checked = f"{verdict.files:,} files, {format_bytes(verdict.bytes)}, of {', '.join(verdict.runs)}"
    print(f"{len(differences):,} differ of {checked}" if differences else f"all as it was made: {checked}")
    return 1 if differences else 0


if __name__ == "__main__":
    run_program(main)
