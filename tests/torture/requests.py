"""Requests: damaged and hostile ones over raw sockets to a running server.

No request gets status 500 or no answer, and after each batch another client gets its answer in time, while connections
that send nothing are still held. The server's memory and its log stay bounded.
"""

import base64
import io
import json
import random
import re
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress

import psutil
from PIL import Image

from tests.torture.adversary import Report
from tests.torture.mutation import TEXTS, changed, changed_bytes, changed_json
from tests.torture.processes import Program
from tests.torture.world import World

REQUESTS_OF_A_BATCH, HALF_OPEN = 60, 40
ANSWER_SECONDS = 60.0
MEMORY = 1 << 30
"""Bytes by which the server may grow."""
LOG_BYTES = 2 << 20
"""Bytes that a batch may add to the log."""
_START_SECONDS = 240
_ATTACKER = "127.0.0.2"
"""The address that attacks come from; a well-behaved client has another."""


class Requests:
    """See the top of the file. The server is started with the first batch, and again if it has ended."""

    weight = 2.0

    def __init__(self, world: World) -> None:
        self._world = world
        self._server: Program | None = None
        self._port, self._resident, self._logged = 0, 0, 0

    def strike(self, draw: random.Random, report: Report) -> None:
        """Send a batch of requests, then a healthy one."""
        self._start()
        held = [self._connect(_ATTACKER) for _ in range(draw.randrange(HALF_OPEN))]
        for half in held:
            with suppress(OSError):
                half.sendall(draw.choice(_BEGINNINGS))
        for _ in range(REQUESTS_OF_A_BATCH):
            make = draw.choice(_REQUESTS)
            self._attack(draw, make.__name__.strip("_").replace("_", " "), make(draw, self._model()), report)
        self._healthy(report)
        for half in held:
            half.close()
        self._examine(report)

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.kill()
            self._world.remove(self._server.folder)

    def _model(self) -> str:
        return "first/final"

    def _start(self) -> None:
        if self._server is not None and self._server.process.poll() is None:
            return
        project = self._world.copy("requests")
        command = [sys.executable, "-m", "scripts.serve", "--model", f"{self._model()}=out/exported/{self._model()}"]
        command += ["--port", "0", "--threads", "1", "--device", "cpu", "--timeout", "20", "--max-body-mb", "4"]
        self._server = Program(command, project, self._world.environment(project))
        deadline = time.monotonic() + _START_SECONDS
        while not (found := re.search(r"ready: open http://127\.0\.0\.1:(\d+)/", self._server.output())):
            if self._server.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not start: {self._server.output()[-2000:]}")
            time.sleep(0.1)
        self._port, self._logged = int(found[1]), len(self._server.output())
        # A first answer, so that what is loaded once is in the memory that later answers are compared with.
        self._exchange(_post(_valid(self._model())), "127.0.0.1")
        self._resident = psutil.Process(self._server.process.pid).memory_info().rss

    def _connect(self, source: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), ANSWER_SECONDS, (source, 0))

    def _exchange(self, data: bytes, source: str, patience: float = ANSWER_SECONDS) -> bytes:
        """Send bytes and return what comes back until the server closes, or an answer is complete.

        After `patience` seconds without an answer the server learns that nothing follows: the request may have
        announced more than it has. From then on an answer, or the end of the connection, has to come.

        Raises:
            TimeoutError: neither came.
        """
        with self._connect(source) as connection:
            answer, ended = b"", False
            connection.settimeout(patience)
            with suppress(ConnectionError):
                connection.sendall(data)
                while not _is_complete(answer):
                    try:
                        chunk = connection.recv(65536)
                    except TimeoutError:
                        if ended:
                            raise
                        ended = True
                        connection.settimeout(ANSWER_SECONDS)
                        connection.shutdown(socket.SHUT_WR)
                        continue
                    if not chunk:
                        break
                    answer += chunk
            return answer

    def _attack(self, draw: random.Random, name: str, data: bytes, report: Report) -> None:
        report.attacks += 1
        try:
            answer = self._exchange(data, _ATTACKER, 1.0 if name in _OPEN_ENDED else ANSWER_SECONDS / 2)
        except TimeoutError:
            report.violation("hangs", f"{name}: no answer within {ANSWER_SECONDS:.0f} s to {data[:600]!r}")
            return
        except OSError as error:
            report.note(f"connection refused: {error.strerror}")
            return
        status = answer.split(b" ", 2)[1].decode(errors="replace") if answer.startswith(b"HTTP/") else "closed"
        report.note(f"status {status}")
        if status == "500":
            report.violation("tracebacks", f"{name}: status 500 to {data[:1500]!r}")

    def _healthy(self, report: Report) -> None:
        """Another client is answered."""
        try:
            answer = self._exchange(_post(_valid(self._model())), "127.0.0.1")
        except OSError as error:
            report.violation("hangs", f"after a batch, another client is not answered: {error}")
            return
        if not answer.startswith(b"HTTP/1.1 200"):
            report.violation("lost", f"after a batch, another client gets {answer[:500]!r}")

    def _examine(self, report: Report) -> None:
        """Look at the memory and the log of the server."""
        log = self._server.output()
        added, self._logged = log[self._logged :], len(log)
        if "Traceback (most recent call last)" in added:
            report.violation("tracebacks", f"in the log of the server: {added[-3000:]}")
        if len(added) > LOG_BYTES:
            report.violation("other", f"a batch adds {len(added):,} bytes to the log")
        if self._server.process.poll() is not None:
            report.violation("lost", f"the server has ended with status {self._server.process.returncode}")
            return
        grown = psutil.Process(self._server.process.pid).memory_info().rss - self._resident
        if grown > MEMORY:
            report.violation("other", f"the server has grown by {grown >> 20} MiB")
            self.close()


def _is_complete(answer: bytes) -> bool:
    """Whether an answer has come as a whole."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    if re.search(rb"(?im)^transfer-encoding: *chunked", head):
        return body.endswith(b"0\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    return bool(separator and length and len(body) >= int(length[1]))


def _post(body: bytes, path: str = "/v1/chat/completions", kind: str = "application/json", *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *more, "", ""]).encode() + body


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def _question(model: str, image: bytes, text: str = "Which colour is the first image?") -> dict:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 2}


def _valid(model: str) -> bytes:
    return json.dumps(_question(model, _png(40, 30))).encode()


def _changed_values(draw: random.Random, model: str) -> bytes:
    return _post(json.dumps(changed(draw, _full(draw, model))).encode(errors="surrogatepass"))


def _full(draw: random.Random, model: str) -> dict:
    more = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "stream": draw.random() < 0.5}
    return _question(model, _png(40, 30)) | more | {"stream_options": {"include_usage": True}}


def _changed_text(draw: random.Random, model: str) -> bytes:
    return _post(changed_json(draw, _full(draw, model)))


def _changed_request(draw: random.Random, model: str) -> bytes:
    return changed_bytes(draw, _post(_valid(model)))


def _damaged_image(draw: random.Random, model: str) -> bytes:
    return _post(json.dumps(_question(model, changed_bytes(draw, _png(40, 30)))).encode())


def _huge_image(draw: random.Random, model: str) -> bytes:
    width, height = draw.choice(((60_000, 2), (2, 60_000), (2_000_000, 2), (8000, 8000), (30_000, 30_000)))
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(bytes(min((width + 1) * height, 1 << 22)), 9)
    framed = [
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each))
        for each in (head, pixels, b"IEND")
    ]
    return _post(json.dumps(_question(model, b"\x89PNG\r\n\x1a\n" + b"".join(framed))).encode())


def _long_text(draw: random.Random, model: str) -> bytes:
    text = draw.choice(("a", "ab ", "\n", "é", "<image>", "🙂")) * draw.choice((1000, 50_000, 400_000))
    return _post(json.dumps(_question(model, _png(8, 8), text), ensure_ascii=False).encode()[: 3 << 20])


def _many_parts(draw: random.Random, model: str) -> bytes:
    question = _question(model, _png(8, 8))
    count = draw.choice((33, 200, 5000))
    part = (
        question["messages"][0]["content"][0] if draw.random() < 0.3 and count < 5000 else {"type": "text", "text": "a"}
    )
    question["messages"] = draw.choice(([{"role": "user", "content": [part] * count}], question["messages"] * count))
    return _post(json.dumps(question).encode())


def _wrong_length(draw: random.Random, model: str) -> bytes:
    body = _valid(model)
    length = draw.choice(("-1", "0", "99999999999999999999", "1e3", "", "+5", str(len(body) - 7), str(len(body) + 7)))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    double = "Content-Length: 3\r\n" if draw.random() < 0.2 else ""
    return f"{head}{double}Content-Length: {length}\r\n\r\n".encode() + body


def _chunks(draw: random.Random, model: str) -> bytes:
    body = _valid(model)
    sizes = draw.choice((f"{len(body):x}", "0", "-1", "zz", "ffffffffffffffff", f"{len(body):x};x={'y' * 9000}", "1"))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    both = "Content-Length: 5\r\n" if draw.random() < 0.3 else ""
    end = draw.choice((b"\r\n0\r\n\r\n", b"\r\n", b"", b"\r\n0\r\nX: y\r\n\r\n"))
    return f"{head}{both}Transfer-Encoding: chunked\r\n\r\n{sizes}\r\n".encode() + body + end


def _strange_head(draw: random.Random, model: str) -> bytes:
    body = _valid(model)
    return draw.choice(
        (
            b"GET / HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /page/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /page/%2e%2e/%2e%2e/app.py HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /v1/files/%00%ff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /v1/models/" + b"%ff" * 2000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /examples/99999999999999999999999/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"DELETE /v1/files/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"BREW /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
            b"GET /health HTTP/1.1\r\nHost: " + b"\xff" * 100 + b"\r\n\r\n",
            _post(body, "/v1/chat/completions", draw.choice(("text/plain", "", "application/json; charset=utf-7"))),
            _post(body, more_path(draw)),
            _post(body) * 3,
        )
    )


def more_path(draw: random.Random) -> str:
    """A path that takes no such body."""
    return draw.choice(("/", "/health", "/v1/models", "/v1/files", "/v1/chat/completions/"))


def _upload(draw: random.Random, model: str) -> bytes:
    data = changed_bytes(draw, _png(40, 30)) if draw.random() < 0.7 else _png(40, 30)
    name = draw.choice((*TEXTS[:6], "x.png")).replace("\ud800", "?")
    head = f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    body = head * draw.choice((1, 1, 1, 12)) + data + draw.choice((b"\r\n--B--\r\n", b"\r\n--B", b""))
    return _post(body, "/v1/files", draw.choice(("multipart/form-data; boundary=B", "multipart/form-data")))


_BEGINNINGS = (
    b"",
    b"P",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 4000000\r\n\r\n{",
    b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
)
_OPEN_ENDED = ("changed request", "wrong length", "chunks", "strange head", "upload")
"""Requests that may announce more than they send."""
_REQUESTS: tuple[Callable[[random.Random, str], bytes], ...] = (
    *(_changed_values, _changed_values, _changed_values, _changed_text, _changed_text, _changed_request),
    *(_damaged_image, _huge_image, _long_text, _many_parts, _wrong_length, _chunks, _strange_head, _upload),
)
