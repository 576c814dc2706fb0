"""Connections with bounds that uvicorn lacks: their number, and the time that a client may take.

A connection waits for a request, or is busy with one. While it waits it costs its client something, not the others:

head       a request's head must be complete within `head_timeout`, however its bytes arrive
idle       a connection is closed after `idle_timeout` without a request
write      a client that reads nothing for `write_timeout` while an answer waits for it is cut off
number     in all, and for each client. One more connection takes the place of the one that has waited longest, of the
           same client or, if all clients together have too many, of the client that has most; busy ones stay, and if
           all are busy the new one is closed

Of a head, h11 bounds the size only while it is incomplete, and of a chunked body nothing; both are bounded here too.
The time and the size of a body are bounded by `request_guard`.
"""

import asyncio
import resource
import socket
import struct
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from scripts.serving.clients import client_of_address
from scripts.serving.log_lines import LogLimiter

_MAX_PARTIAL_HEAD, _MAX_HEAD = 16 << 10, 32 << 10  # bytes
_MAX_HEADERS = 100
# Chunks of a body that may be small; beyond them the mean must be `_MEAN_CHUNK` bytes, as each costs time of the loop.
_SMALL_CHUNKS = 2000
_MEAN_CHUNK = 64
BACKLOG = 256
"""Connections that the kernel holds, and that are accepted at once at most."""
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 seconds
_OTHER_FILES = 256  # descriptors for models, images and libraries


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections; times in seconds. See the module."""

    head_timeout: float = 15.0
    idle_timeout: float = 60.0
    write_timeout: float = 60.0
    max_connections: int = 800
    max_client_connections: int = 200


class _BoundedRequests(h11.Connection):
    """The server's side of HTTP/1.1, with bounds on heads and chunks; refuses what proxies may read in another way."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, _MAX_PARTIAL_HEAD)
        self._chunks = self._received = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._received = 0
            names = {name for name, _ in event.headers}
            size = sum(len(name) + len(value) for name, value in event.headers) + len(event.target)
            if len(event.headers) > _MAX_HEADERS or size > _MAX_HEAD:
                raise h11.RemoteProtocolError("the head of the request is too large", error_status_hint=431)
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding exclude each other")
        elif isinstance(event, h11.Data):
            self._chunks += 1
            self._received += len(event.data)
            if self._chunks > _SMALL_CHUNKS + self._received // _MEAN_CHUNK:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


class ConnectionTable:
    """All connections, by client; those that wait in the order in which they began to."""

    def __init__(self, limits: ConnectionLimits, trusted: frozenset[str] = frozenset()) -> None:
        """`trusted` are addresses of proxies, which have many clients: only the total bounds them."""
        self.limits, self.trusted = limits, trusted
        self.counts: Counter[str] = Counter()
        self.waiting: dict[str, dict[BoundedProtocol, None]] = {}

    def admit(self, protocol: "BoundedProtocol") -> bool:
        """Count a new connection, perhaps at the cost of one that waits; false if there is no place for it."""
        client = protocol.client_name
        if client not in self.trusted and self.counts[client] >= self.limits.max_client_connections:
            if not self._close_one(client):
                return False
        elif self.counts.total() >= self.limits.max_connections:
            # The client with most connections of which one waits; not a client that has fewer than the newcomer.
            having = max(self.waiting, key=lambda name: self.counts[name], default=client)
            if self.counts[having] < self.counts[client] or not self._close_one(having):
                return False
        self.counts[client] += 1
        return True

    def remove(self, protocol: "BoundedProtocol") -> None:
        """Forget a connection that was admitted."""
        self.set_waiting(protocol, False)
        self.counts[protocol.client_name] -= 1
        if not self.counts[protocol.client_name]:
            del self.counts[protocol.client_name]

    def set_waiting(self, protocol: "BoundedProtocol", waits: bool) -> None:
        """Note that a connection waits for a request, from now on, or does not."""
        client = protocol.client_name
        if waits:
            self.waiting.setdefault(client, {})[protocol] = None
        elif client in self.waiting:
            self.waiting[client].pop(protocol, None)
            if not self.waiting[client]:
                del self.waiting[client]

    def _close_one(self, client: str) -> bool:
        oldest = next(iter(self.waiting.get(client, ())), None)
        if oldest is not None:
            oldest.leave()
        return oldest is not None


class BoundedProtocol(H11Protocol):
    """uvicorn's connection with the limits of a `ConnectionTable`, which `bounded_protocol` sets."""

    table: ConnectionTable

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _BoundedRequests()
        self.client_name = ""
        self._admitted = self._began = False
        self._waiting_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit a connection or close it."""
        super().connection_made(transport)
        self.client_name = client_of_address(self.client[0] if self.client else "")
        self._admitted = self.table.admit(self)
        if not self._admitted:
            transport.abort()
            return
        self._wait(self.table.limits.head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timers()
        if self._admitted:
            self._admitted = False
            self.table.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request: the first one begins the time in which its head must be complete."""
        if not self._admitted:
            return
        if not self._began and not self._busy:
            self._began = True
            self._wait(self.table.limits.head_timeout, again=False)
        super().data_received(data)
        if self._busy:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has arrived already."""
        super().on_response_complete()
        if self.transport.is_closing():
            # What is still to be sent is sent, but not to a client that does not read.
            self._write_timer = self._write_timer or self.loop.call_later(
                self.table.limits.write_timeout, self._cut_off
            )
        elif not self._busy:
            self._began = False
            self._wait(self.table.limits.idle_timeout)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request; a connection on which an answer has begun can only be closed."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()
        if self.cycle is not None:
            # The application may still be reading the body: what it answers has nowhere to go.
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def pause_writing(self) -> None:
        """The client reads too slowly: from now on it has `write_timeout`."""
        super().pause_writing()
        self._write_timer = self._write_timer or self.loop.call_later(self.table.limits.write_timeout, self._cut_off)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._write_timer is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None

    def leave(self) -> None:
        """Close a connection that waits."""
        self._stop_waiting()
        self.transport.abort()

    def _cut_off(self) -> None:
        """Close a connection whose client does not read, with a reset.

        Otherwise the kernel would keep what is unsent, up to 4 MB, and offer it to the client for minutes.
        """
        if (connection := self.transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self, seconds: float, again: bool = True) -> None:
        """Wait for `seconds` at most; with `again` as the last one in the order of those that wait."""
        if self._waiting_timer is not None:
            self._waiting_timer.cancel()
        self._waiting_timer = self.loop.call_later(seconds, self.leave)
        if again:
            self.table.set_waiting(self, False)
            self.table.set_waiting(self, True)

    def _stop_waiting(self) -> None:
        if self._waiting_timer is not None:
            self._waiting_timer.cancel()
            self._waiting_timer = None
        if self._admitted:
            self.table.set_waiting(self, False)

    def _stop_timers(self) -> None:
        self._stop_waiting()
        if self._write_timer is not None:
            self._write_timer.cancel()


def bounded_protocol(limits: ConnectionLimits, trusted: frozenset[str] = frozenset()) -> type[BoundedProtocol]:
    """The class of connections that share `limits`, for uvicorn's option `http`."""
    return type("Connection", (BoundedProtocol,), {"table": ConnectionTable(limits, trusted)})


def fitting_connections(wanted: int) -> int:
    """The number of connections that the limit of open files allows, at most `wanted`; raises the limit if it can."""
    needed = wanted + BACKLOG + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    fitting = max(16, soft - BACKLOG - _OTHER_FILES)
    print(f"the limit of open files ({soft}) allows {fitting} connections, not {wanted}: ulimit -n", file=sys.stderr)
    return fitting


def quiet_accept(loop: asyncio.AbstractEventLoop) -> None:
    """Let the event loop report a lack of file descriptors in one short line, and not once for each connection.

    asyncio itself stops accepting for a second; but it reports every failed attempt, with a traceback.
    """
    limiter = LogLimiter(1)

    def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "out of system resource" not in context["message"]:
            loop.default_exception_handler(context)
        elif limiter.allows("accept"):
            print(f"no connection can be accepted: {context['exception']}; see ulimit -n", file=sys.stderr)

    loop.set_exception_handler(report)
