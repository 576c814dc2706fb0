"""torchrun on one node: starts and watches the ranks of this node, and exits with the launcher.

On the launcher's own machine the kernel ends this process with it. With several nodes each checks every few seconds
whether the launcher still holds its lock, so `kill -9` of the launcher, the loss of its node or of `srun` ends all
ranks within seconds, and none goes on writing. That only works where nodes share the run's folder with its locks,
which is checked before anything starts.
"""

import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from scripts.training.parent_death import die_with_parent
from scripts.training.runlock import launcher_lives

_SECONDS_BETWEEN_CHECKS = 2.0
_CHECKS = 5
_SECONDS_TO_SAVE = 300.0


def main() -> int:
    """Run torchrun, without the traceback that it prints where a rank fails: the rank has reported its error."""
    die_with_parent()
    arguments = sys.argv[1:]
    several_nodes = arguments[0] == "--watch"
    if not several_nodes:
        # A scheduler that warns of its time limit signals every process of the job. The ranks handle the signal;
        # torchrun would be killed by it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    else:
        _stop_on_request()
        lock, arguments = Path(arguments[1]), arguments[2:]
        if not _sees_lock(lock):
            return 3
        threading.Thread(target=_watch, args=(lock, _signal_pipe()), daemon=True).start()
        if arguments[0] != "--node-rank":
            arguments = ["--node-rank", os.environ["SLURM_NODEID"], *arguments]
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # torchrun leaves its folder of logs behind, which is empty: the ranks write theirs into the state of the run.
    logs = tempfile.TemporaryDirectory(prefix="torchrun-", ignore_cleanup_errors=True)
    try:
        with logs:
            run.main(["--log-dir", logs.name, *arguments])
    except SignalException as end:
        print(end, file=sys.stderr)
        # The ranks were asked to save, and have. On a failure here srun would kill those of other nodes, which may
        # still be writing.
        return 0 if several_nodes else 1
    except ChildFailedError as end:
        print(end, file=sys.stderr)
        return 1
    return 0


def _sees_lock(lock: Path) -> bool:
    """Whether this node sees the launcher's lock; if not, a message goes to the launcher."""
    for _ in range(_CHECKS):
        if launcher_lives(lock):
            return True
        time.sleep(_SECONDS_BETWEEN_CHECKS)
    text = (
        f"{socket.gethostname()} does not see the lock that the launcher holds on {lock}: the folder is not shared "
        "between the nodes, or is mounted without locks (Lustre: -o flock; NFS: not nolock). Put the results on a "
        "file system that all nodes share"
    )
    print(json.dumps({"refused": text}), flush=True)
    return False


def _signal_pipe() -> int:
    """The reading end of a pipe that gets the number of every signal of this process, whose handlers run as well."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _watch(lock: Path, signals: int) -> None:
    """Kill this process, and with it its ranks, once the launcher is gone; `signals`: see `_signal_pipe`."""
    misses, allowed = 0, _CHECKS
    while misses < allowed:
        arrived, _, _ = select.select([signals], [], [], _SECONDS_BETWEEN_CHECKS)
        if arrived and signal.SIGTERM in os.read(signals, 64):
            # When a job is cancelled the launcher may be gone at once, while the ranks here still save.
            allowed = int(_SECONDS_TO_SAVE / _SECONDS_BETWEEN_CHECKS)
        try:
            misses = 0 if launcher_lives(lock) else misses + 1
        except OSError as error:
            # A file server that does not answer for a moment proves nothing about the launcher.
            print(f"the lock cannot be checked: {error}", file=sys.stderr)
    print(f"{socket.gethostname()}: the launcher is gone, so its ranks end", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_on_request() -> None:
    """Turn SIGUSR1 into SIGTERM: `srun` passes on the former, and at the latter kills its tasks at once with SIGKILL.

    SIGUSR1 stays blocked, here and in the ranks, which srun signals too: they get SIGTERM from torchrun.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def wait() -> None:
        signal.sigwait({signal.SIGUSR1})
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
