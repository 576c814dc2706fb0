"""What stands before every request, as an ASGI server calls it: bodies share a room that is always given back."""

import asyncio
import json

import pytest

from scripts.serving import request_guard as module
from scripts.serving.request_guard import LOOPBACK, RequestGuard


def scope(**headers: str) -> dict:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/v1/files", "headers": named}


class Client:
    """Sends the pieces of a body, then nothing for a long time before it leaves, and keeps the answer."""

    def __init__(self, *pieces: bytes):
        self.pieces, self.answer = list(pieces), []

    async def receive(self) -> dict:
        if not self.pieces:
            await asyncio.sleep(5)
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self.pieces.pop(0), "more_body": True}

    async def send(self, message: dict) -> None:
        self.answer.append(message)

    @property
    def refusal(self) -> tuple[int, str]:
        return self.answer[0]["status"], json.loads(self.answer[1]["body"])["error"]["code"]


def ask(guard: RequestGuard, client: Client, **headers: str) -> None:
    asyncio.run(guard(scope(**headers), client.receive, client.send))


def test_room_that_an_app_gives_back_early_is_given_back_once():
    seen = []

    async def app(scope, receive, send):
        seen.append(guard.taken)
        scope["visualchat.release"]()
        seen.append(guard.taken)

    guard = RequestGuard(app, max_body_bytes=100, max_total_body_bytes=150)
    release = guard._reserve(40)  # another body that is still being read
    ask(guard, Client(), content_length="60")
    assert seen == [100, 40] and guard.taken == 40
    release()
    assert guard.taken == 0


def test_room_is_given_back_whatever_happens():
    async def app(scope, receive, send):
        raise RuntimeError

    guard = RequestGuard(app, max_body_bytes=100)
    with pytest.raises(RuntimeError):
        ask(guard, Client(), transfer_encoding="chunked")
    assert guard.taken == 0


def test_a_body_of_unknown_length_takes_all_that_one_may_have():
    async def app(scope, receive, send):
        client = Client()
        await guard(_scope, client.receive, client.send)
        refusals.append(client.refusal)

    _scope, refusals = scope(content_length="60"), []
    guard = RequestGuard(app, max_body_bytes=100, max_total_body_bytes=150)
    ask(guard, Client(), transfer_encoding="chunked")
    assert refusals == [(503, "overloaded")]


def test_a_body_that_does_not_come_is_not_awaited_for_ever(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)

    async def app(scope, receive, send):
        while (await receive())["type"] == "http.request":
            pass

    client = Client(b"begin")
    guard = RequestGuard(app, max_body_bytes=100)
    ask(guard, client, content_length="60")
    assert client.refusal == (408, "timeout") and guard.taken == 0


def test_the_largest_body_has_room_however_little_there_is_for_all():
    client = Client()
    ask(RequestGuard(answer_ok, max_body_bytes=100, max_total_body_bytes=10), client, content_length="100")
    assert client.answer[0]["status"] == 200


def test_a_body_that_is_too_large_is_read_away_so_that_its_sender_sees_the_answer(monkeypatch):
    monkeypatch.setattr(module, "_DRAIN", 0.05)
    client = Client(b"x" * 50, b"x" * 51)
    ask(RequestGuard(answer_ok, max_body_bytes=100), client, content_length="101")
    assert client.refusal == (413, "request_too_large") and client.pieces == []


async def answer_ok(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize("given", ["Bearer secret", "bearer secret", "BEARER  secret "])
def test_the_key_opens(given):
    client = Client()
    ask(RequestGuard(answer_ok, key="secret"), client, authorization=given)
    assert client.answer[0]["status"] == 200


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", "Bearer s", "Bearer secre", "Bearer secrets", "Bearer SECRET", "Basic secret", "secret"],
)
def test_nothing_else_opens(given):
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
def test_only_pages_of_this_server_under_its_own_names_may_ask(host, origin, code):
    client = Client()
    ask(RequestGuard(answer_ok, hosts=LOOPBACK), client, host=host, **({"origin": origin} if origin else {}))
    assert client.answer[0]["status"] == 200 if code is None else client.refusal == (403, code)
