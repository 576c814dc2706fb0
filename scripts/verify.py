"""Check a results root: that every file that a step has made exists, with its size and sha256.

    python -m scripts.verify --root results            read every file
    python -m scripts.verify --root results --quick    compare sizes only
    python -m scripts.verify --root results --repair   also remove what is damaged; the next run of Snakemake makes it
                                                       again, and nothing else

Files are compared with the lock files of finished runs and with the records of finished steps. Each difference is one
line with the file, what was found and what is expected. Code and libraries that have changed are reported as notes;
with --strict they count as differences. Not checked are checkpoints, logs and curves, which contain times.

Exit status: 0 nothing differs, or all that differed can be made again (--repair); 1 something differs, or there is
nothing to check.
"""

import sys
from pathlib import Path

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.formatting import format_bytes
from scripts.provenance.repair import withdraw
from scripts.provenance.verification import verify_root

MAX_LINES = 100


def main() -> int:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, default=Path("results"), metavar="FOLDER", help="results root")
    arguments.add_argument("--quick", action="store_true", help="compare sizes only")
    arguments.add_argument("--strict", action="store_true", help="count changed code and libraries as differences")
    arguments.add_argument("--raw", type=Path, metavar="FOLDER", help="check your own raw files (data_path) as well")
    help_repair = "remove damaged files that a step has made, for the next run of Snakemake to make again"
    arguments.add_argument("--repair", action="store_true", help=help_repair)
    args = arguments.parse_args()
    result = verify_root(args.root, args.quick, args.raw)
    differences = result.differences + (result.notes if args.strict else [])
    for line in differences[:MAX_LINES]:
        print(line)
    if len(differences) > MAX_LINES:
        print(f"... and {len(differences) - MAX_LINES:,} more")
    for line in [] if args.strict else result.notes:
        print(f"note: {line}", file=sys.stderr)
    of_runs = f", of {', '.join(result.runs)}" if result.runs else ""
    checked = f"{result.files:,} files, {format_bytes(result.bytes)}{of_runs}"
    plural = "" if len(differences) == 1 else "s"
    print(f"{len(differences):,} difference{plural} in {checked}" if differences else f"nothing differs: {checked}")
    if not args.repair:
        return 1 if differences else 0
    withdrawn = withdraw(args.root, result.damaged)
    if withdrawn:
        files = "1 file was" if len(withdrawn) == 1 else f"{len(withdrawn):,} files were"
        print(f"{files} withdrawn: run snakemake again, as before, to make what is missing")
    if result.foreign:
        print(
            f"{len(result.foreign):,} are your own files, which nothing can make again: restore them", file=sys.stderr
        )
    return 1 if result.foreign or (args.strict and result.notes) else 0


if __name__ == "__main__":
    run_program(main)
