"""Remove the lock that a killed Snakemake left in this folder, if the one who set it is really gone.

Snakemake locks its working directory and leaves the lock behind when it is killed. This step looks for a living
Snakemake in the same directory; where there is none, it asks Snakemake to unlock. Nothing else is touched.
"""

import subprocess
import sys
from pathlib import Path

import psutil

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program


def main() -> None:
    parser(__doc__).parse_args()
    locks = Path(".snakemake/locks")
    if not locks.is_dir() or not any(locks.iterdir()):
        return
    if owner := living_snakemake(Path.cwd()):
        raise UserError(f"Snakemake is already at work in this folder (process {owner}); wait for it or stop it first")
    print("clearing the lock of a Snakemake that was killed", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "snakemake", "--unlock", "--quiet", "all"], check=True)


def living_snakemake(folder: Path) -> int | None:
    """Process number of a Snakemake that runs in `folder`, if there is one."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if not any(Path(word).name == "snakemake" for word in words[:4]):
            continue
        try:
            if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                return process.info["pid"]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None


if __name__ == "__main__":
    run_program(main)
