"""Attack the project for a while, and count what holds: `make torture`.

    python -m tests.torture --minutes 30
    python -m tests.torture --minutes 5 --only rows,images
    python -m tests.torture --seed 7 --only kills --strike 3      one strike again

Builds the graph of a tiny configuration once, below a temporary folder, and attacks copies of it: kills, full disks and
limits, damaged files, rows, images, archives and requests (docs/reliability.md). Each kind is a module of this package.
Random numbers come from --seed, so that what is found can be repeated. Exit status: 1 if a promise was not kept.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.common.errors import run_program
from tests.preload import client as preload
from tests.torture.adversary import Adversary, Attack
from tests.torture.batch import BatchAttack
from tests.torture.damage import Damage
from tests.torture.disk import Disk
from tests.torture.kills import Kills
from tests.torture.requests import Requests
from tests.torture.world import World
from tests.workflow.project import ROOT

MEMORY = 2 << 30
"""Bytes that a batch of images or archives may take; a decoded image of the largest size has 200 MB."""
ATTACKS: dict[str, Callable[[World], Attack]] = {
    "rows": lambda world: BatchAttack(world, "rows", 1, 120, MEMORY),
    "images": lambda world: BatchAttack(world, "images", 1, 300, MEMORY),
    "archives": lambda world: BatchAttack(world, "archives", 1, 300, MEMORY),
    "kills": Kills,
    "damage": Damage,
    "disk": Disk,
    "requests": Requests,
}


def main() -> int:
    """Run the program."""
    args = _arguments()
    if preload.available():
        preload.server()
    print(f"seed {args.seed}", flush=True)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder, args.project, args.keep)
    attacks = {kind: ATTACKS[kind](world) for kind in args.only}
    adversary = Adversary(attacks, args.seed, lambda line: print(line, flush=True), lambda *what: repeat(args, *what))
    started = time.monotonic()
    try:
        if args.strike is not None:
            adversary.strike(args.only[0], args.strike)
            attacks[args.only[0]].close()
        else:
            if any(not isinstance(attack, BatchAttack) for attack in attacks.values()):
                world.build()
                print(f"{time.monotonic() - started:.0f} s until the graph was built", flush=True)
            adversary.run(args.minutes * 60 - (time.monotonic() - started))
    finally:
        if args.folder is None and not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    table = adversary.table()
    minutes = (time.monotonic() - started) / 60
    print(f"{table}\n\nseed {args.seed}, {minutes:.1f} minutes: {adversary.violations} promises were not kept")
    if args.out:
        args.out.write_text(f"{table}\n\nSeed {args.seed}, {minutes:.0f} minutes, two processes.\n")
    return 1 if adversary.violations else 0


def repeat(args: argparse.Namespace, kind: str, number: int) -> str:
    """The command that repeats one strike."""
    return f"{Path(sys.executable).name} -m tests.torture --seed {args.seed} --only {kind} --strike {number}"


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, help="of all random numbers; default: another one each time")
    arguments.add_argument("--minutes", type=float, default=30, help="after which no strike is begun (default: 30)")
    arguments.add_argument("--only", type=_kinds, default=list(ATTACKS), help=f"of {', '.join(ATTACKS)}, by commas")
    arguments.add_argument("--strike", type=int, metavar="NUMBER", help="only this strike, of the one kind of --only")
    arguments.add_argument("--out", type=Path, metavar="FILE", help="write the table there, as Markdown")
    help_folder = "work there, and leave the copies and the finished graph for the next time; default: a temporary one"
    arguments.add_argument("--folder", type=Path, metavar="FOLDER", help=help_folder)
    arguments.add_argument("--keep", action="store_true", help="keep the copies of strikes that found something")
    arguments.add_argument("--project", type=Path, default=ROOT, help="the project that is attacked (default: this)")
    args = arguments.parse_args()
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(2**32)
    if args.strike is not None and len(args.only) != 1:
        arguments.error("--strike needs --only with one kind")
    return args


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := sorted(set(kinds) - set(ATTACKS)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ATTACKS)}")
    return kinds


if __name__ == "__main__":
    run_program(main)
