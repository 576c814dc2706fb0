"""The lock of a run: a file on which the launcher and every rank hold one byte each, on whatever machine they are.

It is free exactly when all of them have ended, for whatever reason, because the kernel releases the locks of a process
that ends. They are POSIX record locks, which NFS 4, Lustre (mounted with `flock`), BeeGFS and GPFS share between nodes;
a file system that does not is detected before anything starts (`node_launcher.py`).
"""

import fcntl
import os
import socket
import struct
import time
from pathlib import Path

from scripts.common.errors import UserError

_SECONDS_TO_DIE = 20.0
# struct flock of Linux on 64 bits: type, whence, start, length, process.
_FLOCK = "hhqqi"


class RunLock:
    """A lock file with one byte for the launcher (0) and one for each rank (1, 2, ...)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # The lock lasts as long as the file is open.
        self._file = open(path, "r+" if path.exists() else "w+", encoding="utf-8")  # noqa: SIM115 - see `release`

    def take_all(self) -> None:
        """Take the launcher's byte, and wait until the ranks of an earlier, killed launcher have ended.

        Raises:
            UserError: another process trains this run, or such ranks do not end.
        """
        if not self._try(fcntl.LOCK_EX, 1, 0):
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            raise UserError(f"{self._path.parent} is being trained by {owner}; wait for it or stop it")
        deadline = time.monotonic() + _SECONDS_TO_DIE
        while not self._try(fcntl.LOCK_EX, 0, 1):
            if time.monotonic() > deadline:
                raise UserError(
                    f"ranks of an earlier run are still alive and hold {self._path}; stop them and try again"
                )
            time.sleep(0.1)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 0, 1)
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()

    def take_rank(self, rank: int) -> None:
        """Take the byte of a rank; held until the process ends."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 1 + rank)

    def release(self) -> None:
        """Release everything that this process holds."""
        self._file.close()

    def _try(self, kind: int, length: int, start: int) -> bool:
        try:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB, length, start)
        except OSError:
            return False
        return True


def launcher_lives(path: Path) -> bool:
    """Whether another process, on this machine or another, holds the launcher's byte of the lock at `path`.

    It only queries (F_GETLK), so it never blocks a process that takes the lock. Not for a process that holds a byte
    itself: closing the file would release that.
    """
    try:
        with open(path, "r+") as file:
            query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, query)
    except FileNotFoundError:
        return False
    return struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK
