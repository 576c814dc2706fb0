"""torchrun, on one node: starts and watches the ranks of this node, quietly, and never outlives the launcher.

On the launcher's own machine the kernel ends this process with it. Over several nodes each asks every few seconds
whether the launcher still holds its lock, so `kill -9` of the launcher, the loss of its node or of `srun` ends all
ranks within seconds, and no orphan goes on writing. That only works where nodes share the run's folder with its locks,
which is checked before anything starts.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from scripts.training.parent_death import die_with_parent
from scripts.training.runlock import launcher_lives

_SECONDS_BETWEEN_LOOKS = 2.0
_LOOKS = 5
_SECONDS_TO_SAVE = 300.0


def main() -> int:
    """Be torchrun; a rank that fails has already said why."""
    die_with_parent()
    arguments = sys.argv[1:]
    several = arguments[0] == "--watch"
    if not several:
        # A scheduler that warns of its limit signals every process of the job. The ranks know what to do; torchrun
        # would die of it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    else:
        _stop_on_request()
        lock, arguments = Path(arguments[1]), arguments[2:]
        if not _seen(lock):
            return 3
        threading.Thread(target=_watch, args=(lock, _signals()), daemon=True).start()
        if arguments[0] != "--node-rank":
            arguments = ["--node-rank", os.environ["SLURM_NODEID"], *arguments]
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(arguments)
    except SignalException as end:
        print(end, file=sys.stderr)
        # The ranks were asked to save, and have. A failure here would have srun kill those of other nodes, which may
        # still be writing.
        return 0 if several else 1
    except ChildFailedError as end:
        print(end, file=sys.stderr)
        return 1
    return 0


def _seen(lock: Path) -> bool:
    """Whether this node sees the launcher's lock; if not, the launcher is told."""
    for _ in range(_LOOKS):
        if launcher_lives(lock):
            return True
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    text = (
        f"{socket.gethostname()} does not see the lock that the launcher holds on {lock}: the folder is not shared "
        "between the nodes, or is mounted without locks (Lustre: -o flock; NFS: not nolock). Put the results on a "
        "file system that all nodes share"
    )
    print(json.dumps({"refused": text}), flush=True)
    return False


def _signals() -> int:
    """A pipe from which the numbers of the signals that this process gets can be read, besides what they cause."""
    inlet, outlet = os.pipe()
    os.set_blocking(outlet, False)
    signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    return inlet


def _watch(lock: Path, signals: int) -> None:
    misses, looks = 0, _LOOKS
    while misses < looks:
        arrived, _, _ = select.select([signals], [], [], _SECONDS_BETWEEN_LOOKS)
        if arrived and signal.SIGTERM in os.read(signals, 64):
            # Where a job is cancelled the launcher may be gone at once, while the ranks here still save.
            looks = int(_SECONDS_TO_SAVE / _SECONDS_BETWEEN_LOOKS)
        try:
            misses = 0 if launcher_lives(lock) else misses + 1
        except OSError as error:
            # A file server that is away for a moment proves nothing about the launcher.
            print(f"the lock cannot be asked about: {error}", file=sys.stderr)
    print(f"{socket.gethostname()}: the launcher is gone, so its ranks end", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_on_request() -> None:
    """Turn SIGUSR1 into SIGTERM: `srun` hands on the one, and at the other ends its tasks at once with SIGKILL.

    The signal stays blocked, here and in the ranks, which srun reaches too: torchrun tells them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def wait() -> None:
        signal.sigwait({signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
