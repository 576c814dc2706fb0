"""GPUs of this machine, each for one run at a time.

Two runs that share a GPU by accident are slow, or die for lack of memory an hour later. So the launcher locks every
GPU before it starts ranks, and limits the ranks to these. The kernel releases the locks of a process that ends. Where a
scheduler assigns GPUs (Slurm, Kubernetes), nothing is locked.
"""

import fcntl
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scripts.common.errors import UserError
from scripts.common.gpus import present

_SCHEDULERS = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")


class Devices:
    """The GPUs that a run has reserved, as CUDA_VISIBLE_DEVICES names them.

    `names` is None if the run may see all, and empty if it computes on the CPU. `files`: descriptors of the locks.
    """

    def __init__(self, names: list[str] | None, files: list[int]) -> None:
        self.names, self._files = names, files

    def release(self) -> None:
        """Release the locks."""
        while self._files:
            os.close(self._files.pop())


def reserve_gpus(
    run: str,
    count: int,
    environment: Mapping[str, str],
    precision: str = "bf16",
    folder: Path | None = None,
    system: Path = Path("/dev"),
) -> Devices:
    """Reserve `count` free GPUs for `run`; none where the machine has none, or where a scheduler assigns them.

    A run in fp32 with more ranks than there are GPUs, as the miniature's on a laptop, reserves none and uses the CPU.
    Locks are files below `folder` (default: the system's temporary folder); `system` is where device files lie.

    Raises:
        UserError: there are fewer GPUs, or fewer are free; the message names the runs that use them.
    """
    names = [] if any(name in environment for name in _SCHEDULERS) else present(environment, system)
    if not names:
        return Devices(None, [])
    if len(names) < count and precision == "fp32":
        print(f"{run}: more ranks ({count}) than GPUs ({len(names)}), so it trains on the CPU", file=sys.stderr)
        return Devices([], [])
    if len(names) < count:
        raise UserError(
            f"{run} has {count} ranks and needs as many GPUs, but sees {len(names)}; set ranks to {len(names)}"
        )
    folder = folder or Path(tempfile.gettempdir())
    taken: list[str] = []
    files: list[int] = []
    others: list[str] = []
    for name in names:
        if len(taken) == count:
            break
        file = _open(folder / f"visualchat-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            others.append(f"GPU {name} by {owner}")
            os.close(file)
            continue
        os.ftruncate(file, 0)
        os.pwrite(file, f"run {run}, process {os.getpid()}\n".encode(), 0)
        taken.append(name)
        files.append(file)
    if len(taken) < count:
        Devices(taken, files).release()
        used = ", ".join(others)
        raise UserError(
            f"{run} needs {count} of the GPUs {', '.join(names)}, and {len(taken)} are free; in use: {used}. "
            "Wait for it, give the run fewer ranks, or let Snakemake do the waiting: --resources trainings=1"
        )
    return Devices(taken, files)


def _open(path: Path) -> int:
    try:
        # Without O_CREAT first: in a sticky folder the kernel may forbid creating over another user's file.
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.fchmod(file, 0o666)
        return file
    except PermissionError:
        raise UserError(
            f"{path}, which records which process uses a GPU, cannot be opened; remove it if no process uses the GPU"
        ) from None
