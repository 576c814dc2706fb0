"""Check a results root against the lock files of its runs: that every file exists, with its size and sha256.

    python -m scripts.verify --root results            read every file
    python -m scripts.verify --root results --quick    compare sizes only

Each difference is one line with the file, what was found and what is expected. Code and libraries that have changed are
reported as notes; with --strict they count as differences. Checkpoints, logs, previews and the report are in no lock
file: they contain times, or can be made again from the files that are.

Exit status: 0 nothing differs; 1 something differs, or there is nothing to check.
"""

import sys
from pathlib import Path

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.formatting import format_bytes
from scripts.provenance.verification import verify_root

MAX_LINES = 100


def main() -> int:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, default=Path("results"), metavar="FOLDER", help="results root")
    arguments.add_argument("--quick", action="store_true", help="compare sizes only")
    arguments.add_argument("--strict", action="store_true", help="count changed code and libraries as differences")
    arguments.add_argument("--raw", type=Path, metavar="FOLDER", help="check your own raw files (data_path) as well")
    args = arguments.parse_args()
    result = verify_root(args.root, args.quick, args.raw)
    differences = result.differences + (result.notes if args.strict else [])
    for line in differences[:MAX_LINES]:
        print(line)
    if len(differences) > MAX_LINES:
        print(f"... and {len(differences) - MAX_LINES:,} more")
    for line in [] if args.strict else result.notes:
        print(f"note: {line}", file=sys.stderr)
    checked = f"{result.files:,} files, {format_bytes(result.bytes)}, of {', '.join(result.runs)}"
    plural = "" if len(differences) == 1 else "s"
    print(f"{len(differences):,} difference{plural} in {checked}" if differences else f"nothing differs: {checked}")
    return 1 if differences else 0


if __name__ == "__main__":
    run_program(main)
