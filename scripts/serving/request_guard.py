"""What stands before every request: who may ask, from where, and how much they may send.

host     a server for this machine answers to this machine's names only, so that no web page can reach it under a
         name of its own that points here (DNS rebinding)
origin   a page of another site may not use the browser of a person to talk to this server
key      where one is set, everything but the page itself and /health needs it
body     is bounded in size, in time, and all bodies together in memory
"""

import asyncio
import hmac
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scripts.serving.errors import ApiError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_OPEN = re.compile(r"/|/health|/page/[a-z.]+")
_PATIENCE = 60.0  # seconds that a body may take
_DRAIN = 10.0  # seconds during which the rest of a refused body is read and dropped


class RequestGuard:
    """ASGI middleware, see the module."""

    def __init__(
        self,
        app: ASGIApp,
        key: str | None = None,
        hosts: Collection[str] | None = None,
        max_body_bytes: int = 32 << 20,
        max_total_body_bytes: int = 256 << 20,
    ):
        """`hosts` are the names that the server answers to, None for any; `max_body_bytes` and `max_total_body_bytes` are bytes."""
        self.app, self.key, self.hosts = app, key, hosts
        self.max_body_bytes, self.max_total_body_bytes = max_body_bytes, max(max_total_body_bytes, max_body_bytes)
        self.taken = 0  # bytes of the bodies that are read now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            pass  # it went away while it was still sending
        finally:
            if release is not None:
                release()

    def _check_sender(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host).lower()
        if self.hosts is not None and name not in self.hosts:
            message = f"this server does not answer to the name {name!r}; start it with --allow-host {name}"
            raise ApiError(403, message, "host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise ApiError(403, "pages of other sites may not use this server", "origin_not_allowed")
        if self.key is None or _OPEN.fullmatch(path):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
            raise ApiError(401, "this server needs its key: Authorization: Bearer KEY", "invalid_api_key")

    def _expected(self, headers: Headers) -> int | None:
        """The bytes that the request says it has; None if it comes in pieces and does not say."""
        if "transfer-encoding" in headers:
            return None
        try:
            return max(0, int(headers.get("content-length", "0")))
        except ValueError:
            raise ApiError(400, "Content-Length must be a number", "invalid_request") from None

    def _reserve(self, nbytes: int):
        """Take room for a body; returns what gives it back, which may be called twice."""
        if self.taken + nbytes > self.max_total_body_bytes:
            raise ApiError(503, "the server is reading as much as it can; come back soon", "overloaded", retry_after=1)
        self.taken += nbytes
        held = nbytes

        def release() -> None:
            nonlocal held
            self.taken -= held
            held = 0

        return release

    def _bounded(self, receive: Receive) -> Receive:
        """The same body, refused when it becomes too large or takes too long."""
        seen, whole = 0, False
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE

        async def bounded() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"the body did not come within {_PATIENCE:.0f} s", "timeout") from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if seen > self.max_body_bytes:
                    message.clear()
                    await _drain(receive)
                    raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the request is larger than the {self.max_body_bytes:,} bytes that are read", "request_too_large"
        )


async def _drain(receive: Receive) -> None:
    """Read the rest of a body and drop it: a client that is still sending would not see the answer."""
    try:
        async with asyncio.timeout(_DRAIN):
            more = True
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        pass
