"""Checks every request before it is handled: host, origin, API key, and size of the body.

host     a local server answers only to the names of this machine, so that no web page can reach it under its own
         name that resolves to this machine (DNS rebinding)
origin   pages of other sites must not use a visitor's browser to send requests to this server
key      if one is set, everything except the page itself and /health needs it; a client that sends wrong ones is slowed
body     has a maximum size and must arrive at a minimum rate; all bodies together have a maximum of memory, of which
         one client can take a quarter. What counts is what has arrived, not what was announced
"""

import asyncio
import hmac
import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scripts.serving.clients import KeyGuesses, client_of
from scripts.serving.errors import ApiError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PUBLIC = re.compile(r"/|/health|/page/[a-z.]+")
_DRAIN_TIMEOUT = 10.0  # seconds in which the rest of a refused body is read and dropped


@dataclass(frozen=True)
class BodyLimits:
    """Limits of bodies. Sizes in bytes, times in seconds.

    Attributes:
        max_bytes: of one body.
        max_total_bytes: of all bodies that are being read or parsed; at least `max_bytes`.
        timeout: in which a body must arrive, apart from the time that `min_rate` allows for its bytes.
        min_rate: bytes in a second that a client must send.
    """

    max_bytes: int = 32 << 20
    max_total_bytes: int = 256 << 20
    timeout: float = 30.0
    min_rate: float = 8 << 10


DEFAULT_BODY_LIMITS = BodyLimits()


class RequestGuard:
    """ASGI middleware with the checks of this module; a refused request gets the response of an `ApiError`."""

    def __init__(
        self,
        app: ASGIApp,
        key: str | None = None,
        hosts: Collection[str] | None = None,
        limits: BodyLimits = DEFAULT_BODY_LIMITS,
        trusted: Collection[str] = (),
    ) -> None:
        """Wrap `app`.

        Args:
            app: the application.
            key: the API key, `None` for none.
            hosts: names that the server answers to, `None` for any.
            limits: of bodies.
            trusted: addresses of proxies, see `clients.client_of`.
        """
        self.app, self.key, self.hosts, self.limits, self.trusted = app, key, hosts, limits, trusted
        self.max_total_bytes = max(limits.max_total_bytes, limits.max_bytes)
        self.max_client_bytes = max(self.max_total_bytes // 4, limits.max_bytes)
        self.guesses = KeyGuesses()
        self.reserved: Counter[str] = Counter()  # client -> bytes of its bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an HTTP request, and pass it on to the app."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        client = scope["visualchat.client"] = client_of(scope, self.trusted)
        memory = _Reservation(self, client)
        try:
            headers = Headers(scope=scope)
            self._check_sender(scope["path"], headers, client)
            expected = self._expected(headers)
            if expected is not None and expected > self.limits.max_bytes:
                await _drain(receive)
                raise self._too_large()
            scope["visualchat.release"] = memory.release
            await self.app(scope, self._bounded(receive, memory), send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except ClientDisconnect:
            pass  # while sending its body
        finally:
            memory.release()

    def _check_sender(self, path: str, headers: Headers, client: str) -> None:
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host).lower()
        if self.hosts is not None and name not in self.hosts:
            name = name[:100]
            message = f"host {name!r} is not allowed; start the server with --allow-host {name}"
            raise ApiError(403, message, "host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise ApiError(403, "requests from pages of other sites are not allowed", "origin_not_allowed")
        if self.key is None or _PUBLIC.fullmatch(path):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip()
        if given and (wait := self.guesses.wait(client)):
            message = "too many wrong API keys were sent from this address; retry later"
            raise ApiError(429, message, "too_many_wrong_keys", retry_after=math.ceil(wait))
        if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self.key.encode()):
            if given:
                self.guesses.wrong(client)
            raise ApiError(401, "an API key is required: Authorization: Bearer KEY", "invalid_api_key")

    def _expected(self, headers: Headers) -> int | None:
        """The Content-Length of a request in bytes; `None` if its body is sent in chunks."""
        if "transfer-encoding" in headers:
            return None
        try:
            return max(0, int(headers.get("content-length", "0")))
        except ValueError:
            raise ApiError(400, "Content-Length must be a number", "invalid_request") from None

    def reserve(self, client: str, nbytes: int) -> None:
        """Reserve memory for bytes of a body that have arrived.

        Raises:
            ApiError: the client has taken its part, or all clients together all there is.
        """
        if self.reserved[client] + nbytes > self.max_client_bytes:
            raise ApiError(429, "too many requests of this client are being read", "overloaded", retry_after=1)
        if self.reserved.total() + nbytes > self.max_total_bytes:
            raise ApiError(503, "too many requests are being read; retry later", "overloaded", retry_after=1)
        self.reserved[client] += nbytes

    def _bounded(self, receive: Receive, memory: "_Reservation") -> Receive:
        """The same body; raises `ApiError` if it becomes too large or arrives too slowly."""
        received, complete = 0, False
        begin = asyncio.get_running_loop().time()

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(begin + self.limits.timeout + received / self.limits.min_rate):
                    message = await receive()
            except TimeoutError:
                rate = f"{self.limits.timeout:g} s and a second for every {self.limits.min_rate:,.0f} bytes"
                raise ApiError(408, f"the body did not arrive within {rate}", "timeout") from None
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received += size
                complete = not message.get("more_body", False)
                if received > self.limits.max_bytes:
                    message.clear()
                    await _drain(receive)
                    raise self._too_large()
                memory.add(size)
            return message

        return bounded

    def _too_large(self) -> ApiError:
        message = f"the request is too large; at most {self.limits.max_bytes:,} bytes are accepted"
        return ApiError(413, message, "request_too_large")


class _Reservation:
    """The memory that one request has reserved."""

    def __init__(self, guard: RequestGuard, client: str) -> None:
        self._guard, self._client, self._held = guard, client, 0

    def add(self, nbytes: int) -> None:
        """Reserve more, see `RequestGuard.reserve`."""
        self._guard.reserve(self._client, nbytes)
        self._held += nbytes

    def release(self) -> None:
        """Release all of it; may be called more than once."""
        self._guard.reserved[self._client] -= self._held
        self._held = 0
        if not self._guard.reserved[self._client]:
            del self._guard.reserved[self._client]


async def _drain(receive: Receive) -> None:
    """Read and drop the rest of a body: a client that is still sending would not read the response."""
    try:
        async with asyncio.timeout(_DRAIN_TIMEOUT):
            more = True
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        pass
