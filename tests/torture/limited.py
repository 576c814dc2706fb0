"""Run a command under limits of the operating system: `python limited.py LIMITS COMMAND ARGUMENT ...`.

LIMITS is a JSON object; every key is optional:

    file_bytes    the largest file that may be written (EFBIG beyond it)
    open_files    descriptors that may be open at once (EMFILE)
    memory        bytes of address space
    permissions   1: permissions of files bind the superuser as well, except for reading (EACCES)

A file of its own that imports nothing of the project: a function that runs between fork and exec is not safe in a
process with threads.
"""

import ctypes
import json
import os
import resource
import sys

_RESOURCES = {
    "file_bytes": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
    "memory": resource.RLIMIT_AS,
}
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1


def main(limits: dict[str, int], command: list[str]) -> None:
    """Set the limits and become the command."""
    for name, number in _RESOURCES.items():
        if name in limits:
            resource.setrlimit(number, (limits[name], limits[name]))
    if limits.get("permissions") and os.getuid() == 0:
        # The capability is lost with the next exec.
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
