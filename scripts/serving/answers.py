"""An answer that is being generated, sent as one JSON object or as server-sent events.

If its client disconnects, or reads nothing for too long (`connections`), the job is cancelled.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from scripts.serving.errors import ApiError
from scripts.serving.jobs import CANCELLED, DISPLACED, ERROR, TIMEOUT, Job, TextDelta

_KEEP_ALIVE = 10.0  # seconds without a delta after which a stream sends a comment
_GRACE = 10.0  # seconds that an engine may take to notice that a deadline has passed


@dataclass
class Answer:
    """An answer that is being generated, and its JSON form."""

    identity: str
    model: str
    created: int
    job: Job
    deltas: asyncio.Queue[TextDelta]

    async def complete(self, receive: Receive) -> Response:
        """Wait for the complete answer. Status 499 if the client disconnects before.

        Raises:
            ApiError: the answer ended with an error, see `failure`.
        """
        disconnected = asyncio.create_task(_disconnect(receive))
        try:
            texts = []
            while True:
                delta = await self._next(disconnected)
                if delta is None:
                    return Response(status_code=499)
                texts.append(delta.text)
                if delta.finish is not None:
                    break
        finally:
            disconnected.cancel()
            self.job.cancel()
        if (error := self.failure(delta)) is not None:
            raise error
        message = {"role": "assistant", "content": "".join(texts), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": delta.finish}
        return JSONResponse(self._frame("chat.completion", [choice]) | {"usage": self._usage()})

    async def events(self, disconnected: asyncio.Task, include_usage: bool) -> AsyncIterator[str]:
        """The data of server-sent events, "" to keep the connection alive; ends early if the client disconnects."""
        extra = {"usage": None} if include_usage else {}

        def chunk(content: dict[str, str], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish}
            return json.dumps(self._frame("chat.completion.chunk", [choice]) | extra, ensure_ascii=False)

        yield chunk({"role": "assistant", "content": ""})
        while True:
            delta = await self._next(disconnected, _KEEP_ALIVE)
            if delta is None:
                return
            if delta == TextDelta():
                yield ""
                continue
            if delta.text:
                yield chunk({"content": delta.text})
            if delta.finish is not None:
                break
        if (error := self.failure(delta)) is not None:
            yield json.dumps(error.body())
        else:
            yield chunk({}, delta.finish)
            if include_usage:
                yield json.dumps(self._frame("chat.completion.chunk", []) | {"usage": self._usage()})
        yield "[DONE]"

    async def _next(self, disconnected: asyncio.Task, timeout: float | None = None) -> TextDelta | None:
        """The next delta; `None` if the client disconnected, an empty delta after `timeout` seconds without one.

        The engine enforces the deadline of the job. If the engine hangs, the answer times out here soon after.
        """
        left = self.job.deadline + _GRACE - time.monotonic()
        if not self.deltas.empty() and not disconnected.done():
            return self.deltas.get_nowait()
        get = asyncio.create_task(self.deltas.get())
        timeout = left if timeout is None else min(left, timeout)
        await asyncio.wait({get, disconnected}, timeout=max(timeout, 0), return_when=asyncio.FIRST_COMPLETED)
        if get.done() and not disconnected.done():
            return get.result()
        get.cancel()
        with suppress(asyncio.CancelledError):
            await get
        if disconnected.done():
            return None
        return TextDelta() if self.job.deadline + _GRACE > time.monotonic() else TextDelta(finish=TIMEOUT)

    def failure(self, last: TextDelta) -> ApiError | None:
        """The error that an answer ended with, `None` if it ended normally; `last` is its last delta."""
        if last.finish == TIMEOUT:
            if self.job.output_ids:
                return ApiError(504, "the answer exceeded the time limit", "timeout")
            message = "no batch slot became free before the timeout; retry later"
            return ApiError(503, message, "overloaded", retry_after=5)
        if last.finish == DISPLACED:
            return ApiError(429, "the queue is full of requests of this client", "overloaded", retry_after=5)
        if last.finish in (ERROR, CANCELLED):
            return ApiError(500, last.error or "the answer was cancelled", "model_error")
        return None

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.identity, "object": kind, "created": self.created, "model": self.model}
        return head | {"choices": choices, "system_fingerprint": None}

    def _usage(self) -> dict[str, Any]:
        prompt, completion = len(self.job.encoded), len(self.job.output_ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.job.cached_tokens, "audio_tokens": 0},
        }


class EventStream(Response):
    """An answer as server-sent events. Cancels the job when the client disconnects."""

    def __init__(self, answer: Answer, include_usage: bool) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self.answer, self.include_usage = answer, include_usage
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events of the answer, until it ends or the client disconnects."""
        disconnected = asyncio.create_task(_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in self.answer.events(disconnected, self.include_usage):
                text = f"data: {data}\n\n" if data else ": still working\n\n"
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            if not disconnected.done():
                await send({"type": "http.response.body", "body": b""})
        finally:
            disconnected.cancel()
            self.answer.job.cancel()


async def _disconnect(receive: Receive) -> None:
    """Return when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
