"""Stands for a program that the server runs, where a shell starts it: `bash.sh` makes `python` this one.

    python -I -S stub.py ADDRESS ARGUMENT ...

Its streams, folder, variables and signals are the program's, and so is the status with which it ends. It imports
little, because it is started hundreds of times.
"""

import json
import os
import signal
import socket
import struct
import sys

_HEADER = struct.Struct("<q")
_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(address: str, arguments: list[str]) -> None:
    """Have the server run `python` with these arguments, and end as it does."""
    command = [sys.executable, *arguments]
    os.umask(umask := os.umask(0o077))
    request = {"command": command, "folder": os.getcwd(), "variables": dict(os.environ), "umask": umask}
    content = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        # Until the number is known, a signal waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)
        socket.send_fds(server, [_HEADER.pack(len(content))], [0, 1, 2])
        server.sendall(content)
        (child,) = _HEADER.unpack(server.recv(_HEADER.size))
        if child > 0:
            for number in _HANDED_ON:
                signal.signal(number, lambda number, frame: os.kill(child, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)
        if child < 0:
            os.execv(sys.executable, command)
        (status,) = _HEADER.unpack(server.recv(_HEADER.size))
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
