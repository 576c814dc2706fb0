"""Writes the passport of a run: what it came from, what it left, and the code that made it, each with its hash.

    reads   the manifests of every step behind the run, its `finished.json`, its exports and its scores
    writes  <out>, train/<run>/lock.json; `python -m scripts.verify` checks a results root against it

It is the last file of a run. Two clean builds of the same inputs give the same bytes but for `environment`, which says
on what they were built; `sha256` is the hash of all the rest. There are no times and no absolute paths in it.
"""

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

from scripts.common.code import ROOT, code_files
from scripts.common.errors import UserError, run_program
from scripts.common.files import canonical, read_json, text_sha256, write_json
from scripts.common.program import parser
from scripts.passport.contents import files_of, listings_of

ENVIRONMENT = "environment"
_PINS = ("envs/requirements.txt", "envs/requirements-torch.txt")


def lock(root: Path, run: str, manifests: list[str], programs: list[str]) -> dict[str, Any]:
    """The passport of `run` as JSON.

    Args:
        root: the results root.
        run: name of the run; its files lie in `train/<run>`.
        manifests: those of every step behind the run, relative to `root`.
        programs: dotted names of the modules that were run.

    Raises:
        UserError: the run is not finished, or a file is missing.
    """
    finished = read_json(root / "train" / run / "finished.json")
    state = root / "train" / run / finished["state"]
    files = {file.path: file for manifest in manifests for file in files_of(root, manifest)}
    value = {
        "v": 1,
        "run": run,
        "fingerprint": finished["fingerprint"],
        "settings": read_json(state / "settings.json"),
        "inputs": read_json(state / "inputs.json"),
        "files": {path: {"bytes": file.bytes, "sha256": file.sha256} for path, file in files.items()},
        "listings": {path: below for manifest in manifests for path, below in listings_of(root, manifest).items()},
        "programs": sorted(programs),
        "code": code_files(*programs),
    }
    return value | {"sha256": lock_sha256(value), ENVIRONMENT: environment(state)}


def lock_sha256(value: dict[str, Any]) -> str:
    """Hash of what a passport says, apart from where it was made and from this hash itself."""
    return text_sha256(canonical({key: entry for key, entry in value.items() if key not in (ENVIRONMENT, "sha256")}))


def environment(state: Path) -> dict[str, Any]:
    """Where the run was trained, as its state tells, and the versions of all pinned libraries as they are now."""
    return {"training": read_json(state / "environment.json"), "libraries": libraries()}


def libraries() -> dict[str, str]:
    """The installed versions of the pinned libraries, by name; one that is not installed is left out."""
    found = {}
    for line in "\n".join((ROOT / path).read_text(encoding="utf-8") for path in _PINS).splitlines():
        name = line.split("#")[0].split("==")[0].strip()
        try:
            found |= {name: importlib.metadata.version(name)} if name else {}
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    outside = [str(path) for path in args.manifests if not path.is_relative_to(args.root)]
    if outside:
        raise UserError(f"{outside[0]} does not lie below the results root {args.root}")
    manifests = [path.relative_to(args.root).as_posix() for path in args.manifests]
    write_json(args.out, lock(args.root, args.run, manifests, args.programs))


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
