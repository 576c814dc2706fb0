"""Writes the passport of a run: what it came from, what it left, and the code that made it, each with its hash.

    reads   the manifests of every step behind the run, its `finished.json`, its exports and its scores
    writes  <out>, train/<run>/lock.json; `python -m scripts.verify` checks a results root against it

It is the last file of a run. Two clean builds of the same inputs give the same bytes but for `environment`, which says
on what they were built; `sha256` is the hash of all the rest. There are no times and no absolute paths in it.
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
    """What the program takes."""
    result = parser(__doc__)
    result.add_argument("--root", required=True, type=Path, help="results root")
    result.add_argument("--run", required=True, help="name of the run")
    result.add_argument(
        "--manifests", required=True, nargs="+", type=Path, metavar="FILE", help="of every step behind it"
    )
    result.add_argument("--programs", required=True, nargs="+", metavar="MODULE", help="modules that were run")
    result.add_argument("--out", required=True, type=Path, metavar="FILE", help="train/<run>/lock.json")
    return result


if __name__ == "__main__":
    run_program(main)
