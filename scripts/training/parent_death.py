"""Every process of a run exits with its parent, even after `kill -9`, because the kernel kills it then.

    python -m scripts.training.parent_death srun ...        becomes that program, and exits with its parent

The kernel does this on one machine; with several, every node watches the launcher's lock (`node_launcher.py`).
"""

import ctypes
import os
import signal
import sys

PARENT = "VISUALCHAT_PARENT"
"""Environment variable in which a process passes its own process id to its children."""
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the process that started it dies (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before that call; then this process has another parent by now.
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)
    os.environ[PARENT] = str(os.getpid())


def main() -> None:
    """Become the program given as arguments; the kernel keeps the setting across that."""
    die_with_parent()
    # What srun starts may run on another machine, where this process id means nothing.
    del os.environ[PARENT]
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - becoming another program, without a shell, is the purpose


if __name__ == "__main__":
    main()
