"""A local web server with scripted responses, which records its requests."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

Answer = Callable[["_Handler"], None]


class Request(NamedTuple):
    """A request that came in; header names in small letters."""

    path: str
    headers: dict[str, str]


class Server:
    """Answers each path with what `routes` holds for it: one answer, or a list of answers, of which the last stays."""

    def __init__(self) -> None:
        self.routes: dict[str, Answer | list[Answer]] = {}
        self.requests: list[Request] = []
        self.connections = 0
        self.released = threading.Event()
        """Answers that stall wait for it."""
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"of": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    def ranges(self) -> list[str | None]:
        """The Range header of every request so far."""
        return [request.headers.get("range") for request in self.requests]

    def answer(self, handler: _Handler) -> None:
        path = handler.path.partition("?")[0]
        with self._lock:
            self.requests.append(
                Request(handler.path, {name.lower(): value for name, value in handler.headers.items()})
            )
            route = self.routes.get(path, status(404))
            if isinstance(route, list):
                route = route.pop(0) if len(route) > 1 else route[0]
        route(handler)


class _Handler(BaseHTTPRequestHandler):
    of: Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.of.connections += 1
        super().setup()

    def handle(self) -> None:
        # The client may close the connection early: what it does then is what the tests look at.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().finish()

    def do_GET(self) -> None:
        self.of.answer(self)

    def log_message(self, *arguments) -> None:
        pass

    def head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """An answer with this status; `Retry_After="1"` is the header Retry-After."""

    def answer(handler: _Handler) -> None:
        handler.head(
            code,
            {name.replace("_", "-"): value for name, value in headers.items()} | {"Content-Length": str(len(body))},
        )
        handler.wfile.write(body)

    return answer


def page(text: str) -> Answer:
    """A web page."""
    return status(200, text.encode(), Content_Type="text/html; charset=utf-8")


@dataclass(frozen=True)
class File:
    """A file as a good server gives it, with the faults that are named."""

    data: bytes | Path
    etag: str = ""
    modified: str = ""
    ranges: bool = True
    kind: str = "application/octet-stream"
    cut: int | None = None
    """Close the connection after this many bytes of an answer."""
    stall: int | None = None
    """Stop sending after this many bytes of an answer."""
    chunked: bool = False
    """Do not say how long the file is."""
    heeds: bool = True
    """Whether If-Range is understood."""
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, handler: _Handler) -> None:
        size = self.data.stat().st_size if isinstance(self.data, Path) else len(self.data)
        headers = {"Content-Type": self.kind, **self.headers}
        headers |= {name: value for name, value in (("ETag", self.etag), ("Last-Modified", self.modified)) if value}
        wanted = self._wanted(handler, size)
        start, stop = wanted or (0, size)
        if start >= size > 0:
            handler.head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        headers |= {"Transfer-Encoding": "chunked"} if self.chunked else {"Content-Length": str(stop - start)}
        handler.head(206 if wanted else 200, headers)
        self._send(handler, start, stop)

    def _wanted(self, handler: _Handler, size: int) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", handler.headers.get("Range", ""))
        if not match or not self.ranges:
            return None
        condition = handler.headers.get("If-Range")
        if self.heeds and condition and condition not in (self.etag, self.modified):
            return None
        if not match[1]:
            return max(size - int(match[2]), 0), size
        return int(match[1]), min(int(match[2]) + 1, size) if match[2] else size

    def _send(self, handler: _Handler, start: int, stop: int) -> None:
        for limit in (self.cut, self.stall):
            stop = stop if limit is None else min(stop, start + limit)
        if isinstance(self.data, Path):
            with open(self.data, "rb") as file:
                data = os.pread(file.fileno(), stop - start, start)
        else:
            data = self.data[start:stop]
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)
        if self.cut is not None:
            handler.close_connection = True
        elif self.stall is not None:
            handler.of.released.wait(60)
            handler.close_connection = True
        elif self.chunked:
            handler.wfile.write(b"0\r\n\r\n")
