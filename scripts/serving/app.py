"""The HTTP server: OpenAI's chat completions over our models, and a page to chat in.

    POST /v1/chat/completions   an answer, whole or as server-sent events
    GET  /v1/models[/NAME]      what is served
    POST /v1/files              upload an image (multipart), GET and DELETE /v1/files/ID
    GET  /health                whether all engines run, and how much they do
    GET  /                      the chat page; /about and /examples/N are what it shows

A request is read, checked and turned into tokens and pixels in a pool of threads; the engine answers; here the pieces
go out as they come. Whoever goes away is noticed at once and costs nothing more.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from scripts.serving.chat_request import ChatRequest
from scripts.serving.engine import EngineClosed, QueueFull
from scripts.serving.errors import ApiError
from scripts.serving.examples import Example
from scripts.serving.image_store import ImageStore
from scripts.serving.jobs import CANCELLED, ERROR, TIMEOUT, Job, SamplingParams, TextDelta
from scripts.serving.request_guard import RequestGuard
from scripts.serving.served_model import ServedModel

PAGE = Path(__file__).parent / "page"
_ALIVE = 10.0  # seconds without a piece after which a stream says that it is still there
_GRACE = 10.0  # seconds that an engine may take to notice that a deadline has passed
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may cost. Sizes in bytes, times in seconds."""

    timeout: float = 120.0
    images: int = 32
    image: int = 20 << 20
    body: int = 32 << 20
    bodies: int = 256 << 20
    uploads: int = 256 << 20
    pixels: int = 256 << 20


class Service:
    """The handlers, and what they share."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        limits: Limits = Limits(),
        examples: Sequence[Example] = (),
        training: dict[str, dict[str, Any]] | None = None,
    ):
        """`training` tells, by a model's name, what it was trained on."""
        self.models = {served.name: served for served in models}
        self.limits, self.examples, self.training = limits, examples, training or {}
        self.pictures = ImageStore(limits.image, limits.uploads, limits.pixels)

    async def health(self, request: Request) -> Response:
        engines = {name: served.engine for name, served in self.models.items()}
        well = all(engine.alive for engine in engines.values())
        state = {name: engine.state() for name, engine in engines.items()}
        return JSONResponse({"status": "ok" if well else "failed", "models": state}, 200 if well else 503)

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(served) for served in self.models.values()]})

    async def one_model(self, request: Request) -> Response:
        return JSONResponse(self._described(self._served(request.path_params["name"])))

    async def about(self, request: Request) -> Response:
        """What the page shows before anybody has asked anything."""
        examples = [
            {"images": [f"examples/{n}/{m}" for m in range(len(one.images))], "questions": one.questions}
            for n, one in enumerate(self.examples)
        ]
        models = [self._described(served) | self.training.get(name, {}) for name, served in self.models.items()]
        limits = {"images": self.limits.images, "image": self.limits.image, "body": self.limits.body}
        return JSONResponse({"models": models, "examples": examples, "limits": limits})

    async def example(self, request: Request) -> Response:
        numbers = request.path_params
        if numbers["n"] >= len(self.examples) or numbers["m"] >= len(self.examples[numbers["n"]].images):
            raise ApiError(404, "there is no such example", "not_found")
        return FileResponse(self.examples[numbers["n"]].images[numbers["m"]], headers={"Cache-Control": "max-age=600"})

    async def upload(self, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise ApiError(400, "send the image as the multipart field 'file'", "invalid_request", "file")
            data, purpose = await file.read(), str(form.get("purpose", "vision"))[:64]
            name = (file.filename or "image")[:200]
        identity = await run_in_threadpool(self.pictures.upload, name, purpose, data)
        return JSONResponse(self.pictures.uploaded(identity).described(identity))

    async def file(self, request: Request) -> Response:
        identity = request.path_params["identity"]
        kept = self.pictures.uploaded(identity)
        if kept is None:
            raise ApiError(404, f"there is no file {identity!r} (any more)", "file_not_found")
        if request.method == "DELETE":
            self.pictures.delete(identity)
            return JSONResponse({"id": identity, "object": "file", "deleted": True})
        return JSONResponse(kept.described(identity))

    async def chat(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"the body must be application/json, not {kind or 'unnamed'}", "invalid_request")
        deadline = time.monotonic() + self.limits.timeout
        # Not `request.body()`, which would be kept as long as the request, and that may be long.
        body = [piece async for piece in request.stream()]
        asked, served, pixels, hashes, encoded = await run_in_threadpool(self._read, body)
        request.scope["visualchat.release"]()
        pieces: asyncio.Queue[TextDelta] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        most = min(asked.sampling.max_new_tokens, served.max_answer_tokens(encoded))
        sampling = SamplingParams(**(vars(asked.sampling) | {"max_new_tokens": most}))
        job = Job(
            *(encoded, pixels, hashes, sampling, deadline),
            on_delta=lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece),
        )
        try:
            served.engine.submit(job)
        except QueueFull:
            wait = 1 + served.engine.settings.max_queue_size // max(1, served.engine.settings.max_batch_size)
            raise ApiError(429, "too many questions wait; come back soon", "overloaded", retry_after=wait) from None
        except EngineClosed:
            raise ApiError(503, "the server is ending", "ending", retry_after=5) from None
        answer = Answer(f"chatcmpl-{token_hex(12)}", served.name, int(time.time()), job, pieces)
        return EventStream(answer, asked.include_usage) if asked.stream else await answer.whole(request.receive)

    def _read(self, body: list[bytes]):
        """The request as a job's parts; runs in a thread, and empties `body`."""
        try:
            content = json.loads(b"".join(body))
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not valid JSON: {str(error)[:200]}", "invalid_json") from None
        body.clear()
        asked = ChatRequest.parse(content, self.pictures.data, self.limits.images)
        served = self._served(asked.model)
        encoded = served.encode(asked.messages)
        chosen = [
            self.pictures.prepared(asked.images[index], served.processor, asked.image_locations[index])
            for index in encoded.image_indices
        ]
        return asked, served, [pixels for pixels, _ in chosen], [name for _, name in chosen], encoded

    def _served(self, name: str) -> ServedModel:
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"there is no model {name[:80]!r} here; there is {known}", "model_not_found", "model")
        return self.models[name]

    def _described(self, served: ServedModel) -> dict[str, Any]:
        return {"id": served.name, "object": "model", "owned_by": "visualchat", **served.about}


@dataclass
class Answer:
    """An answer on its way out."""

    identity: str
    model: str
    created: int
    job: Job
    pieces: asyncio.Queue[TextDelta]

    async def whole(self, receive: Receive) -> Response:
        """Wait for all of it; if the client goes away, nobody needs it."""
        gone = asyncio.create_task(_gone(receive))
        try:
            texts = []
            while True:
                piece = await self._next(gone)
                if piece is None:
                    return Response(status_code=499)
                texts.append(piece.text)
                if piece.finish is not None:
                    break
        finally:
            gone.cancel()
            self.job.cancel()
        if (error := self.failure(piece)) is not None:
            raise error
        message = {"role": "assistant", "content": "".join(texts), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": piece.finish}
        return JSONResponse(self._frame("chat.completion", [choice]) | {"usage": self._usage()})

    async def events(self, gone: asyncio.Task, include_usage: bool) -> AsyncIterator[str]:
        """The answer as the data of server-sent events; ends early if the client goes away."""
        extra = {"usage": None} if include_usage else {}

        def chunk(delta: dict[str, str], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return json.dumps(self._frame("chat.completion.chunk", [choice]) | extra, ensure_ascii=False)

        yield chunk({"role": "assistant", "content": ""})
        while True:
            piece = await self._next(gone, _ALIVE)
            if piece is None:
                return
            if piece == TextDelta():
                yield ""
                continue
            if piece.text:
                yield chunk({"content": piece.text})
            if piece.finish is not None:
                break
        if (error := self.failure(piece)) is not None:
            yield json.dumps(error.body())
        else:
            yield chunk({}, piece.finish)
            if include_usage:
                yield json.dumps(self._frame("chat.completion.chunk", []) | {"usage": self._usage()})
        yield "[DONE]"

    async def _next(self, gone: asyncio.Task, patience: float | None = None) -> TextDelta | None:
        """The next piece; None if the client is gone, an empty one if `patience` (seconds) is over.

        The engine keeps the deadline; should it hang, nobody waits for it much longer.
        """
        left = self.job.deadline + _GRACE - time.monotonic()
        if not self.pieces.empty() and not gone.done():
            return self.pieces.get_nowait()
        waiting = asyncio.create_task(self.pieces.get())
        patience = left if patience is None else min(left, patience)
        await asyncio.wait({waiting, gone}, timeout=max(patience, 0), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() and not gone.done():
            return waiting.result()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        if gone.done():
            return None
        return TextDelta() if self.job.deadline + _GRACE > time.monotonic() else TextDelta(finish=TIMEOUT)

    def failure(self, piece: TextDelta) -> ApiError | None:
        """The error that an answer ended with, if it did."""
        if piece.finish == TIMEOUT:
            if self.job.output_ids:
                return ApiError(504, "the answer took too long and was given up", "timeout")
            return ApiError(503, "no place became free in time; come back soon", "overloaded", retry_after=5)
        if piece.finish in (ERROR, CANCELLED):
            return ApiError(500, piece.error or "the answer was given up", "model_error")
        return None

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.identity, "object": kind, "created": self.created, "model": self.model}
        return head | {"choices": choices, "system_fingerprint": None}

    def _usage(self) -> dict[str, Any]:
        read, said = len(self.job.encoded), len(self.job.output_ids)
        details = {"cached_tokens": self.job.cached_tokens, "audio_tokens": 0}
        total = {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
        return total | {"prompt_tokens_details": details}


class EventStream(Response):
    """An answer as server-sent events."""

    def __init__(self, answer: Answer, include_usage: bool):
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self.answer, self.include_usage = answer, include_usage
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in self.answer.events(gone, self.include_usage):
                text = f"data: {data}\n\n" if data else ": still working\n\n"
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            self.answer.job.cancel()


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _page(request: Request) -> Response:
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    return FileResponse(PAGE / "index.html", headers=headers | {"X-Content-Type-Options": "nosniff"})


async def _http_error(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", code).response()


async def _api_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _defect(request: Request, error: Exception) -> Response:
    return ApiError(500, "a defect of the server; its log tells more", "defect").response()


def create_app(service: Service, key: str | None = None, hosts: Sequence[str] | None = None) -> Starlette:
    """The ASGI application; it closes the engines when it ends. `key` and `hosts` are those of the `RequestGuard`."""

    @asynccontextmanager
    async def life(app: Starlette):
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
    limits = service.limits
    guard = Middleware(
        RequestGuard, key=key, hosts=hosts, max_body_bytes=limits.body, max_total_body_bytes=limits.bodies
    )
    handlers = {ApiError: _api_error, HTTPException: _http_error, Exception: _defect}
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=life)
