"""Write the lock file of a run: its inputs, its outputs and the code that made them, each with its hash.

    reads   the manifests of every step that the run depends on, its `finished.json`, its exports and its scores
    writes  <out>, train/<run>/lock.json; `python -m scripts.verify` checks a results root against it

It is the last file of a run. Two clean builds of the same inputs give the same bytes except for the key `environment`,
which describes machine and libraries; `sha256` is the hash of all other keys. It has no times and no absolute paths.
"""

import argparse
from pathlib import Path

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import write_json
from scripts.provenance.locking import build_lock


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    outside = [str(path) for path in args.manifests if not path.is_relative_to(args.root)]
    if outside:
        raise UserError(f"{outside[0]} does not lie below the results root {args.root}")
    manifests = [path.relative_to(args.root).as_posix() for path in args.manifests]
    write_json(args.out, build_lock(args.root, args.run, manifests, args.programs))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    result.add_argument("--root", required=True, type=Path, help="results root")
    result.add_argument("--run", required=True, help="name of the run")
    result.add_argument(
        "--manifests", required=True, nargs="+", type=Path, metavar="FILE", help="manifests of all steps"
    )
    result.add_argument("--programs", required=True, nargs="+", metavar="MODULE", help="modules that were run")
    result.add_argument("--out", required=True, type=Path, metavar="FILE", help="train/<run>/lock.json")
    return result


if __name__ == "__main__":
    run_program(main)
