"""Checks every request before it is handled: host, origin, API key, and size of the body.

host     a local server answers only to the names of this machine, so that no web page can reach it under its own
         name that resolves to this machine (DNS rebinding)
origin   pages of other sites must not use a visitor's browser to send requests to this server
key      if one is set, everything except the page itself and /health needs it
body     has a maximum size and a maximum time, and all bodies together a maximum of memory
"""

import asyncio
import hmac
import re
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scripts.serving.errors import ApiError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PUBLIC = re.compile(r"/|/health|/page/[a-z.]+")
_BODY_TIMEOUT = 60.0  # seconds in which a body must arrive
_DRAIN_TIMEOUT = 10.0  # seconds in which the rest of a refused body is read and dropped


class RequestGuard:
    """ASGI middleware with the checks of this module; a refused request gets the response of an `ApiError`."""

    def __init__(
        self,
        app: ASGIApp,
        key: str | None = None,
        hosts: Collection[str] | None = None,
        max_body_bytes: int = 32 << 20,
        max_total_body_bytes: int = 256 << 20,
    ) -> None:
        """Wrap `app`.

        Args:
            app: the application.
            key: the API key, `None` for none.
            hosts: names that the server answers to, `None` for any.
            max_body_bytes: of one request.
            max_total_body_bytes: of all requests whose bodies are being read.
        """
        self.app, self.key, self.hosts = app, key, hosts
        self.max_body_bytes, self.max_total_body_bytes = max_body_bytes, max(max_total_body_bytes, max_body_bytes)
        self.reserved = 0  # bytes of the bodies that are being read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an HTTP request, and pass it on to the app."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        release = None
        try:
            headers = Headers(scope=scope)
            self._check_sender(scope["path"], headers)
            expected = self._expected(headers)
            if expected is not None and expected > self.max_body_bytes:
                await _drain(receive)
                raise self._too_large()
            release = self._reserve(self.max_body_bytes if expected is None else expected)
            scope["visualchat.release"] = release
            await self.app(scope, self._bounded(receive), send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except ClientDisconnect:
            pass  # while sending its body
        finally:
            if release is not None:
                release()

    def _check_sender(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host).lower()
        if self.hosts is not None and name not in self.hosts:
            message = f"host {name!r} is not allowed; start the server with --allow-host {name}"
            raise ApiError(403, message, "host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise ApiError(403, "requests from pages of other sites are not allowed", "origin_not_allowed")
        if self.key is None or _PUBLIC.fullmatch(path):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
            raise ApiError(401, "an API key is required: Authorization: Bearer KEY", "invalid_api_key")

    def _expected(self, headers: Headers) -> int | None:
        """The Content-Length of a request in bytes; `None` if its body is sent in chunks."""
        if "transfer-encoding" in headers:
            return None
        try:
            return max(0, int(headers.get("content-length", "0")))
        except ValueError:
            raise ApiError(400, "Content-Length must be a number", "invalid_request") from None

    def _reserve(self, nbytes: int) -> Callable[[], None]:
        """Reserve memory for a body; returns a function that releases it, which may be called more than once."""
        if self.reserved + nbytes > self.max_total_body_bytes:
            raise ApiError(503, "too many requests are being read; retry later", "overloaded", retry_after=1)
        self.reserved += nbytes
        held = nbytes

        def release() -> None:
            nonlocal held
            self.reserved -= held
            held = 0

        return release

    def _bounded(self, receive: Receive) -> Receive:
        """The same body; raises `ApiError` if it becomes too large or takes too long."""
        received, complete = 0, False
        deadline = asyncio.get_running_loop().time() + _BODY_TIMEOUT

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"the body did not arrive within {_BODY_TIMEOUT:.0f} s", "timeout") from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > self.max_body_bytes:
                    message.clear()
                    await _drain(receive)
                    raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        message = f"the request is too large; at most {self.max_body_bytes:,} bytes are accepted"
        return ApiError(413, message, "request_too_large")


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
