"""The HTTP server: OpenAI's chat completions, and the chat page.

    POST /v1/chat/completions   an answer, complete or as server-sent events
    GET  /v1/models[/NAME]      the served models
    POST /v1/files              upload an image (multipart); GET and DELETE /v1/files/ID
    GET  /health                whether all engines run, with their counters
    GET  /                      the chat page, which reads /about and /examples/N/M

A request is parsed, checked and converted to tokens and pixels in a thread pool; the engine generates; the handlers
here send its text deltas as they arrive. When the client disconnects, the job is cancelled.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from model.template import EncodedConversation
from scripts.serving.answers import Answer, EventStream
from scripts.serving.chat_request import ChatRequest
from scripts.serving.clients import FairTurns
from scripts.serving.engine import EngineClosedError, QueueFullError
from scripts.serving.errors import ApiError
from scripts.serving.examples import Example
from scripts.serving.image_store import ImageStore
from scripts.serving.jobs import Job, TextDelta
from scripts.serving.request_guard import DEFAULT_BODY_LIMITS, BodyLimits, RequestGuard
from scripts.serving.served_model import ServedModel

Result = TypeVar("Result")
PAGE = Path(__file__).parent / "page"
_PREPARING = 4  # requests that are parsed, decoded and tokenised at the same time, half of them of one client
_MAX_VALUES = 100_000  # of a request's JSON, beside the commas that its texts may have
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Limits:
    """Limits of one request and of all requests together. Sizes in bytes, times in seconds."""

    timeout: float = 120.0
    max_images: int = 32
    max_image_bytes: int = 20 << 20
    max_text_characters: int = 500_000
    bodies: BodyLimits = DEFAULT_BODY_LIMITS
    upload_cache_bytes: int = 256 << 20
    pixel_cache_bytes: int = 256 << 20


DEFAULT_LIMITS = Limits()


class ParsedRequest(NamedTuple):
    """A chat request that is ready for the engine: `pixels` and `hashes` of the images in the order of `encoded`."""

    chat: ChatRequest
    served: ServedModel
    encoded: EncodedConversation
    pixels: list[np.ndarray]
    hashes: list[bytes]


class Service:
    """The request handlers and their shared state."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        limits: Limits = DEFAULT_LIMITS,
        examples: Sequence[Example] = (),
        training: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """`training` holds the training summary of each model by name, for the page."""
        self.models = {served.name: served for served in models}
        self.limits, self.examples, self.training = limits, examples, training or {}
        self.turns = FairTurns(_PREPARING, _PREPARING // 2)
        self.image_store = ImageStore(limits.max_image_bytes, limits.upload_cache_bytes, limits.pixel_cache_bytes)

    async def health(self, request: Request) -> Response:
        """GET /health: 200 if all engines run, 503 otherwise, with the counters of each."""
        engines = {name: served.engine for name, served in self.models.items()}
        alive = all(engine.alive for engine in engines.values())
        state = {name: engine.state() for name, engine in engines.items()}
        return JSONResponse({"status": "ok" if alive else "failed", "models": state}, 200 if alive else 503)

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._description(served) for served in self.models.values()]})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return JSONResponse(self._description(self._served(request.path_params["name"])))

    async def about(self, request: Request) -> Response:
        """GET /about: models, examples and limits for the start of the chat page."""
        examples = [
            {"images": [f"examples/{n}/{m}" for m in range(len(one.images))], "questions": one.questions}
            for n, one in enumerate(self.examples)
        ]
        models = [self._description(served) | self.training.get(name, {}) for name, served in self.models.items()]
        limits = {
            "images": self.limits.max_images,
            "image": self.limits.max_image_bytes,
            "body": self.limits.bodies.max_bytes,
        }
        return JSONResponse({"models": models, "examples": examples, "limits": limits})

    async def example(self, request: Request) -> Response:
        """GET /examples/N/M: image M of example N."""
        numbers = request.path_params
        if numbers["n"] >= len(self.examples) or numbers["m"] >= len(self.examples[numbers["n"]].images):
            raise ApiError(404, "there is no such example", "not_found")
        return FileResponse(self.examples[numbers["n"]].images[numbers["m"]], headers={"Cache-Control": "max-age=600"})

    async def upload(self, request: Request) -> Response:
        """POST /v1/files: keep an image and return its description."""
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise ApiError(400, "send the image as the multipart field 'file'", "invalid_request", "file")
            data, purpose = await file.read(), str(form.get("purpose", "vision"))[:64]
            name = (file.filename or "image")[:200]
        client = request.scope["visualchat.client"]
        identity, upload = await self._in_turn(client, self.image_store.upload, client, name, purpose, data)
        return JSONResponse(upload.description(identity))

    async def file(self, request: Request) -> Response:
        """GET or DELETE /v1/files/ID."""
        identity = request.path_params["identity"]
        upload = self.image_store.uploaded(identity)
        if upload is None:
            raise ApiError(404, f"there is no file {identity!r} (any more)", "file_not_found")
        if request.method == "DELETE":
            self.image_store.delete(identity)
            return JSONResponse({"id": identity, "object": "file", "deleted": True})
        return JSONResponse(upload.description(identity))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise ApiError(415, f"the body must be application/json, not {media_type or 'untyped'}", "invalid_request")
        deadline = time.monotonic() + self.limits.timeout
        # Not `request.body()`, which would hold the body in memory until the answer is complete.
        body = [chunk async for chunk in request.stream()]
        client = request.scope["visualchat.client"]
        parsed = await self._in_turn(client, self._parse, client, body)
        request.scope["visualchat.release"]()
        chat, served, engine = parsed.chat, parsed.served, parsed.served.engine
        deltas: asyncio.Queue[TextDelta] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def on_delta(delta: TextDelta) -> None:
            loop.call_soon_threadsafe(deltas.put_nowait, delta)

        max_new_tokens = min(chat.sampling.max_new_tokens, served.max_answer_tokens(parsed.encoded))
        sampling = replace(chat.sampling, max_new_tokens=max_new_tokens)
        job = Job(parsed.encoded, parsed.pixels, parsed.hashes, sampling, deadline, on_delta, client)
        try:
            engine.submit(job)
        except QueueFullError:
            wait = 1 + engine.settings.max_queue_size // max(1, engine.settings.max_batch_size)
            raise ApiError(429, "the queue is full; retry later", "overloaded", retry_after=wait) from None
        except EngineClosedError:
            raise ApiError(503, "the server is shutting down", "shutting_down", retry_after=5) from None
        answer = Answer(f"chatcmpl-{token_hex(12)}", served.name, int(time.time()), job, deltas)
        return EventStream(answer, chat.include_usage) if chat.stream else await answer.complete(request.receive)

    async def _in_turn(self, client: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in a thread when it is the client's turn.

        Raises:
            ApiError: it was not before the timeout.
        """
        try:
            async with self.turns.turn(client, self.limits.timeout):
                return await run_in_threadpool(function, *arguments)
        except TimeoutError:
            raise ApiError(
                503, "too many requests are being prepared; retry later", "overloaded", retry_after=5
            ) from None

    def _parse(self, client: str, body: list[bytes]) -> ParsedRequest:
        """Parse and prepare a request; runs in a thread, and empties `body` to free its memory early."""
        data = b"".join(body)
        body.clear()
        # Values of JSON take up to sixty times the memory of their text. A comma may also be part of one.
        values = data.count(b",") + data.count(b"[") + data.count(b"{")
        if values > self.limits.max_text_characters + _MAX_VALUES:
            raise ApiError(400, f"the body has {values:,} JSON values or commas, too many", "too_many_values")
        try:
            chat = self._chat_request(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not valid JSON: {str(error)[:200]}", "invalid_json") from None
        del data
        served = self._served(chat.model)
        encoded = served.encode(chat.messages)
        prepared = [
            self.image_store.prepare(client, chat.images[index], served.processor, chat.image_locations[index])
            for index in encoded.image_indices
        ]
        return ParsedRequest(
            chat, served, encoded, [pixels for pixels, _ in prepared], [sha256 for _, sha256 in prepared]
        )

    def _chat_request(self, content: Any) -> ChatRequest:
        limits = self.limits
        return ChatRequest.parse(content, self.image_store.data, limits.max_images, limits.max_text_characters)

    def _served(self, name: str) -> ServedModel:
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"there is no model {name[:80]!r}; served models: {known}", "model_not_found", "model")
        return self.models[name]

    def _description(self, served: ServedModel) -> dict[str, Any]:
        return {"id": served.name, "object": "model", "owned_by": "visualchat", **served.about}


async def _page(request: Request) -> Response:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    return FileResponse(PAGE / "index.html", headers=headers | {"X-Content-Type-Options": "nosniff"})


async def _error(request: Request, error: Exception) -> Response:
    """Every error in OpenAI's form; one that is neither an `ApiError` nor one of HTTP is a bug, logged by Starlette."""
    if isinstance(error, ApiError):
        return error.response()
    if not isinstance(error, HTTPException):
        return ApiError(500, "internal error; the log of the server has the traceback", "internal_error").response()
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", code).response()


def create_app(
    service: Service, key: str | None = None, hosts: Sequence[str] | None = None, trusted: Collection[str] = ()
) -> Starlette:
    """Make the ASGI application, which closes the engines at shutdown. `key`, `hosts`, `trusted`: `RequestGuard`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for served in service.models.values():
            await run_in_threadpool(served.engine.close)

    routes = [
        Route("/", _page),
        Mount("/page", StaticFiles(directory=PAGE)),
        Route("/about", service.about),
        Route("/examples/{n:int}/{m:int}", service.example),
        Route("/health", service.health),
        Route("/v1/models", service.list_models),
        Route("/v1/models/{name:path}", service.one_model),
        Route("/v1/files", service.upload, methods=["POST"]),
        Route("/v1/files/{identity}", service.file, methods=["GET", "DELETE"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
    ]
    guard = Middleware(RequestGuard, key=key, hosts=hosts, limits=service.limits.bodies, trusted=trusted)
    handlers = dict.fromkeys((ApiError, HTTPException, Exception), _error)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=lifespan)
