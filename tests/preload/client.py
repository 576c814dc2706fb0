"""Starts Python programs from a process that has imported torch, DeepSpeed and transformers already.

A rank of a training run spends five seconds of CPU time on imports, more than it trains in most tests. `Popen` and
`run` are those of `subprocess`, except that the interpreter for a command `python -m MODULE ...` is forked from a
server instead of started anew, and what that program starts in the same way is forked from itself. Parents, process
groups, signals, exit statuses and streams are those of a program that was started; `program.py` lists the rest.

What cannot be had that way (another command, other variables than the server was started with, a machine with a GPU
or without Linux) is started anew, so a test gets the same result either way. Tests that look at processes themselves
(variables or command line in /proc, memory) use `subprocess`.
"""

import atexit
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tests.preload import program

_REPOSITORY = Path(__file__).resolve().parents[2]
# As the process began: a test may have changed its variables when the first program is started.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
_ENVIRONMENT["OMP_NUM_THREADS"] = "1"
program.loaded_with(_ENVIRONMENT)
_HEADER = struct.Struct("<q")


class Server:
    """The process that has imported the libraries; see `server.py` for its end of the conversation."""

    def __init__(self):
        self._socket, theirs = socket.socketpair()
        self._folder = tempfile.TemporaryDirectory(prefix="preload-")
        self.address = f"{self._folder.name}/socket"
        # Listening already here: a shell that asks before the server has imported everything waits for it.
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.address)
        listener.listen(16)
        descriptors = [theirs.fileno(), listener.fileno()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.preload.server", *map(str, descriptors)],
            cwd=_REPOSITORY,
            env=_ENVIRONMENT,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        listener.close()
        self.ready = bool(self._socket.recv(1))

    def start(self, start: program.Start, streams: list[int]) -> int:
        """Start a program with these file descriptors as its standard streams; return its process number."""
        content = json.dumps(start.__dict__).encode()
        # A child of the server would not be ours to wait for. One whose parent has ended becomes the child of the
        # nearest ancestor that has asked for it.
        with program.adopting():
            socket.send_fds(self._socket, [_HEADER.pack(len(content))], streams)
            self._socket.sendall(content)
            answer = self._socket.recv(_HEADER.size)
        if len(answer) < _HEADER.size:
            raise RuntimeError(f"the server of preloaded programs ended with status {self.process.wait()}")
        return _HEADER.unpack(answer)[0]

    def close(self) -> None:
        """End the server; programs that it has started are not concerned."""
        self._socket.close()
        self.process.wait()
        self._folder.cleanup()


def available() -> bool:
    """Whether programs can be preloaded here; a GPU cannot be used in a process forked from one that has seen it."""
    return sys.platform == "linux" and not Path("/dev/nvidiactl").exists()


@cache
def server() -> Server:
    """The server of this session, started when it is first needed."""
    started = Server()
    atexit.register(started.close)
    return started


class Popen(subprocess.Popen):
    """`subprocess.Popen` that forks a preloaded interpreter where that is possible. `preloaded`: whether it was."""

    preloaded = False

    def _execute_child(self, *values: Any) -> None:
        options = program.options_of(values)
        start = program.parse(options) if available() and server().ready else None
        if start is None:
            super()._execute_child(*values)
            return
        self.pid = server().start(start, program.streams_of(options))
        self._child_created = self.preloaded = True
        program.close_theirs(self, options)


def in_shells() -> dict[str, str]:
    """Variables with which `python -m MODULE` in a shell script of bash is preloaded, or none where that cannot be."""
    if not available() or not server().ready:
        return {}
    here = Path(__file__).parent
    places = {"BASH_ENV": here / "bash.sh", "PRELOAD_PYTHON": sys.executable, "PRELOAD_STUB": here / "stub.py"}
    return {name: str(place) for name, place in places.items()} | {"PRELOAD_ADDRESS": server().address}


def run(command: list[str], *, capture_output: bool = False, check: bool = False, **options: Any):
    """`subprocess.run` through `Popen`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        out, err = process.communicate()
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
