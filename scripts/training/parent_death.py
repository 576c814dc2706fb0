"""No process of a run outlives the one that started it, not even after `kill -9`: on one machine the kernel sees to
it.

    python -m scripts.training.parent_death srun ...        becomes that program, and dies with whoever started it

Over several machines no kernel can; there every node watches the launcher's lock (`torchrun.py`).
"""

import ctypes
import os
import signal
import sys

PARENT = "VISUALCHAT_PARENT"
"""Variable in which a process tells its children its own number."""
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the process that started it dies (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the request was made; then this process has another parent by now.
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)
    os.environ[PARENT] = str(os.getpid())


def main() -> None:
    """Become the program given as arguments; the kernel remembers the request across that."""
    die_with_parent()
    # What this program starts may be started on another machine, by a parent that no number here can name.
    del os.environ[PARENT]
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
