"""Remove the lock of a killed Snakemake in the working directory.

Snakemake locks its working directory, and the lock stays when it is killed. This program looks for a running Snakemake
in the same directory; if there is none, it calls `snakemake --unlock`. It changes nothing else.
"""

import subprocess
import sys
from pathlib import Path

import psutil

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program


def main() -> None:
    """Run the program."""
    parser(__doc__).parse_args()
    locks = Path(".snakemake/locks")
    if not locks.is_dir() or not any(locks.iterdir()):
        return
    if owner := running_snakemake(Path.cwd()):
        raise UserError(f"Snakemake is already running in this folder (process {owner}); wait for it or stop it first")
    print("removing the lock of a Snakemake that was killed", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "snakemake", "--unlock", "--quiet", "all"], check=True)


def running_snakemake(folder: Path) -> int | None:
    """Process id of a Snakemake that runs in `folder`, if there is one."""
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
