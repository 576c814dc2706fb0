"""The server of preloaded programs: imports the libraries once, then forks for each request.

    python -m tests.preload.server FD LISTENER

A request is the length of a JSON text (eight bytes, with the three standard streams of the program attached) and that
text. On the socket FD it is a `program.Start`, and the answer is the number of the new process (eight bytes), whose
parent is the process that asked. The server ends when the other end of FD is closed.

LISTENER is a listening socket for programs that a shell starts (`stub.py`): a request has the fields of
`program.Start.asked`, and the answers are the number of the process and, once it has ended, its status as `os.waitpid`
gives it. A process whose stub is gone is killed. Where the program has to be started anew, the answer is -1.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys

from tests.preload import program

# Without what starts a thread when it is imported (pyarrow): a process with several threads cannot be forked safely.
_LIBRARIES = (
    "numpy",
    "torch",
    "torch.distributed.run",
    "torch.utils.flop_counter",
    "deepspeed",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.clip.image_processing_pil_clip",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.siglip.image_processing_pil_siglip",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "psutil",
    "pydantic",
    "safetensors.torch",
    "snakemake.cli",
    "tokenizers",
    "tqdm",
)
_HEADER = struct.Struct("<q")


class Server:
    """Serves the two sockets in one thread."""

    def __init__(self, connection: socket.socket, listener: socket.socket):
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ, self._start)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        # Ctrl-C on the terminal is for the tests, and for the programs that they have started.
        self._interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> None:
        """Serve until the other end of the connection is closed."""
        while True:
            for key, _ in self._selector.select():
                if key.data(key.fileobj) is False:
                    return

    def _start(self, connection: socket.socket) -> bool:
        """Fork a program for the process at the other end; return whether there still is one."""
        request, streams = _receive(connection)
        if request is None:
            return False
        inlet, outlet = os.pipe()
        between = os.fork()
        if not between:
            # The process in the middle ends at once, which gives its child a new parent.
            middle = os.getpid()
            if child := os.fork():
                os.write(outlet, _HEADER.pack(child))
                os._exit(0)
            program.wait_for_other_parent(os.getppid, middle)
            self._become(program.Start(**request), streams)
        os.close(outlet)
        number = os.read(inlet, _HEADER.size)
        os.close(inlet)
        os.waitpid(between, 0)
        _close(streams)
        connection.sendall(number)
        return True

    def _accept(self, listener: socket.socket) -> None:
        """Fork a program for a stub."""
        stub, _ = listener.accept()
        request, streams = _receive(stub)
        start = program.Start.asked(**request)
        if start is None:
            stub.sendall(_HEADER.pack(-1))
            stub.close()
        else:
            child = os.fork()
            if not child:
                self._become(start, streams)
            stub.sendall(_HEADER.pack(child))
            process = os.pidfd_open(child)
            self._selector.register(stub, selectors.EVENT_READ, lambda stub: os.kill(child, signal.SIGKILL))
            self._selector.register(process, selectors.EVENT_READ, lambda process: self._end(child, process, stub))
        _close(streams)

    def _end(self, child: int, process: int, stub: socket.socket) -> None:
        """Tell a stub how its program has ended."""
        status = os.waitpid(child, 0)[1]
        self._selector.unregister(process)
        self._selector.unregister(stub)
        os.close(process)
        # The stub may have ended before.
        with stub, contextlib.suppress(OSError):
            stub.sendall(_HEADER.pack(status))

    def _become(self, start: program.Start, streams: list[int]) -> None:
        signal.signal(signal.SIGINT, self._interrupt)
        program.become(start, streams)


def _receive(connection: socket.socket) -> tuple[dict | None, list[int]]:
    header, streams, _, _ = socket.recv_fds(connection, _HEADER.size, 3)
    if not header:
        return None, []
    (length,) = _HEADER.unpack(header)
    content = b""
    while len(content) < length:
        content += connection.recv(length - len(content))
    return json.loads(content), streams


READY = b"1"


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def main(connection: socket.socket, listener: socket.socket) -> None:
    """Import the libraries and serve."""
    # As a rank sets it before it imports DeepSpeed.
    os.environ["DS_ACCELERATOR"] = "cpu"
    paths = sys.path[1:]
    for name in _LIBRARIES:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        # A fork would have one of them. Without this byte the tests start their programs anew.
        sys.exit(f"preloading is off: {threads} threads after the imports of a library that starts them")
    connection.sendall(READY)
    program.remember_start(paths)
    server = Server(connection, listener)
    gc.collect()
    gc.freeze()
    server.run()


if __name__ == "__main__":
    main(*(socket.socket(fileno=int(descriptor)) for descriptor in sys.argv[1:]))
