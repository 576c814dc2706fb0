"""The request guard, called as by an ASGI server: access, and the memory of bodies, which is always released."""

import asyncio
import json

import pytest

from scripts.serving import request_guard as module
from scripts.serving.request_guard import LOOPBACK, RequestGuard


def scope(**headers: str) -> dict:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/v1/files", "headers": named}


class Client:
    """Sends the chunks of a body, then nothing for 5 s before it disconnects, and keeps the response."""

    def __init__(self, *chunks: bytes):
        self.chunks, self.response = list(chunks), []

    async def receive(self) -> dict:
        if not self.chunks:
            await asyncio.sleep(5)
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self.chunks.pop(0), "more_body": True}

    async def send(self, message: dict) -> None:
        self.response.append(message)

    @property
    def refusal(self) -> tuple[int, str]:
        return self.response[0]["status"], json.loads(self.response[1]["body"])["error"]["code"]


def ask(guard: RequestGuard, client: Client, **headers: str) -> None:
    asyncio.run(guard(scope(**headers), client.receive, client.send))


def test_memory_that_an_app_releases_early_is_released_once():
    seen = []

    async def app(scope, receive, send):
        seen.append(guard.reserved)
        scope["visualchat.release"]()
        seen.append(guard.reserved)

    guard = RequestGuard(app, max_body_bytes=100, max_total_body_bytes=150)
    release = guard._reserve(40)  # another body that is still being read
    ask(guard, Client(), content_length="60")
    assert seen == [100, 40] and guard.reserved == 40
    release()
    assert guard.reserved == 0


def test_memory_is_released_after_an_error():
    async def app(scope, receive, send):
        raise RuntimeError

    guard = RequestGuard(app, max_body_bytes=100)
    with pytest.raises(RuntimeError):
        ask(guard, Client(), transfer_encoding="chunked")
    assert guard.reserved == 0


def test_a_body_of_unknown_length_reserves_the_maximum():
    async def app(scope, receive, send):
        client = Client()
        await guard(_scope, client.receive, client.send)
        refusals.append(client.refusal)

    _scope, refusals = scope(content_length="60"), []
    guard = RequestGuard(app, max_body_bytes=100, max_total_body_bytes=150)
    ask(guard, Client(), transfer_encoding="chunked")
    assert refusals == [(503, "overloaded")]


def test_a_body_that_does_not_arrive_times_out(monkeypatch):
    monkeypatch.setattr(module, "_BODY_TIMEOUT", 0.05)

    async def app(scope, receive, send):
        while (await receive())["type"] == "http.request":
            pass

    client = Client(b"begin")
    guard = RequestGuard(app, max_body_bytes=100)
    ask(guard, client, content_length="60")
    assert client.refusal == (408, "timeout") and guard.reserved == 0


def test_the_total_is_at_least_the_maximum_of_one_body():
    client = Client()
    ask(RequestGuard(answer_ok, max_body_bytes=100, max_total_body_bytes=10), client, content_length="100")
    assert client.response[0]["status"] == 200


def test_a_body_that_is_too_large_is_drained(monkeypatch):
    monkeypatch.setattr(module, "_DRAIN_TIMEOUT", 0.05)
    client = Client(b"x" * 50, b"x" * 51)
    ask(RequestGuard(answer_ok, max_body_bytes=100), client, content_length="101")
    assert client.refusal == (413, "request_too_large") and client.chunks == []


async def answer_ok(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize("given", ["Bearer secret", "bearer secret", "BEARER  secret "])
def test_the_correct_key(given):
    client = Client()
    ask(RequestGuard(answer_ok, key="secret"), client, authorization=given)
    assert client.response[0]["status"] == 200


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", "Bearer s", "Bearer secre", "Bearer secrets", "Bearer SECRET", "Basic secret", "secret"],
)
def test_wrong_keys(given):
    client = Client()
    ask(RequestGuard(answer_ok, key="secret"), client, authorization=given)
    assert client.refusal == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("host", "origin", "code"),
    [
        ("localhost", None, None),
        ("LOCALHOST:8000", None, None),
        ("[::1]:8000", None, None),
        ("localhost.evil.example", None, "host_not_allowed"),
        ("evil.example:8000", None, "host_not_allowed"),
        ("", None, "host_not_allowed"),
        ("localhost:8000", "http://localhost:8000", None),
        ("localhost:8000", "http://localhost:9000", "origin_not_allowed"),
        ("localhost:8000", "null", "origin_not_allowed"),
        ("localhost:8000", "http://evil.example/localhost:8000", "origin_not_allowed"),
    ],
)
def test_hosts_and_origins(host, origin, code):
    client = Client()
    ask(RequestGuard(answer_ok, hosts=LOOPBACK), client, host=host, **({"origin": origin} if origin else {}))
    assert client.response[0]["status"] == 200 if code is None else client.refusal == (403, code)
