"""The request guard, called as by an ASGI server: access, and the memory of bodies, which is always released."""

import asyncio
import json

import pytest

from scripts.serving import request_guard as module
from scripts.serving.request_guard import LOOPBACK, BodyLimits, RequestGuard


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


async def read_all(scope, receive, send):
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass


def test_memory_that_an_app_releases_early_is_released_once():
    seen = []

    async def app(scope, receive, send):
        await receive()
        seen.append(guard.reserved.total())
        scope["visualchat.release"]()
        seen.append(guard.reserved.total())

    guard = RequestGuard(app, limits=BodyLimits(max_bytes=100, max_total_bytes=150))
    guard.reserve("other", 40)  # another body that is still being read
    ask(guard, Client(b"x" * 60), content_length="60")
    assert seen == [100, 40] and guard.reserved.total() == 40


def test_memory_is_released_after_an_error():
    async def app(scope, receive, send):
        await receive()
        raise RuntimeError

    guard = RequestGuard(app, limits=BodyLimits(max_bytes=100))
    with pytest.raises(RuntimeError):
        ask(guard, Client(b"x" * 60), transfer_encoding="chunked")
    assert guard.reserved.total() == 0


def test_memory_is_reserved_by_what_arrives():
    guard = RequestGuard(read_all, limits=BodyLimits(max_bytes=100, max_total_bytes=300))
    for announced in ({"content_length": "100"}, {"transfer_encoding": "chunked"}):
        for other, nbytes in (("a", 100), ("b", 100), ("c", 90)):
            guard.reserve(other, nbytes)
        client = Client(b"x" * 5, b"x" * 6)
        ask(guard, client, **announced)
        assert client.refusal == (503, "overloaded"), "5 bytes fit, 11 do not"
        guard.reserved.clear()


def test_one_client_can_take_a_quarter_of_the_memory():
    guard = RequestGuard(read_all, limits=BodyLimits(max_bytes=100, max_total_bytes=1000))
    guard.reserve("", 200)
    client = Client(b"x" * 60)
    ask(guard, client)
    assert client.refusal == (429, "overloaded")


def test_a_body_that_does_not_arrive_times_out():
    client = Client(b"begin")
    guard = RequestGuard(read_all, limits=BodyLimits(timeout=0.05))
    ask(guard, client, content_length="60")
    assert client.refusal == (408, "timeout") and guard.reserved.total() == 0


def test_a_body_must_arrive_at_a_minimum_rate():
    class Dripping(Client):
        async def receive(self):
            await asyncio.sleep(0.01)
            return await super().receive()

    for rate, arrives in ((100_000, False), (10, True)):
        client = Dripping(*[b"x"] * 40)
        client.chunks.append(b"")
        guard = RequestGuard(one_answer, limits=BodyLimits(timeout=0.05, min_rate=rate))
        ask(guard, client, content_length="41")
        assert (client.response[0]["status"] == 200) == arrives


async def one_answer(scope, receive, send):
    for _ in range(41):
        await receive()
    await answer_ok(scope, receive, send)


def test_the_total_is_at_least_the_maximum_of_one_body():
    client = Client(b"x" * 100)
    ask(RequestGuard(answer_ok, limits=BodyLimits(max_bytes=100, max_total_bytes=10)), client, content_length="100")
    assert client.response[0]["status"] == 200


def test_a_body_that_is_too_large_is_drained(monkeypatch):
    monkeypatch.setattr(module, "_DRAIN_TIMEOUT", 0.05)
    client = Client(b"x" * 50, b"x" * 51)
    ask(RequestGuard(answer_ok, limits=BodyLimits(max_bytes=100)), client, content_length="101")
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


def test_guesses_of_a_key_are_slowed_and_those_of_others_are_not():
    guard = RequestGuard(answer_ok, key="secret", trusted={"127.0.0.1"})

    def status(key: str, address: str) -> int:
        client, sent = Client(), scope(authorization=f"Bearer {key}", x_forwarded_for=f"10.9.9.9, {address}")
        asyncio.run(guard(sent | {"client": ("127.0.0.1", 5)}, client.receive, client.send))
        return client.response[0]["status"]

    assert [status(str(n), "10.0.0.1") for n in range(25)] == [401] * 20 + [429] * 5
    assert status("secret", "10.0.0.1") == 429, "a right key is not compared either, or guesses would not be slowed"
    assert status("secret", "10.0.0.2") == 200 and status("wrong", "10.0.0.2") == 401
    assert status("", "10.0.0.1") == 401, "a request without a key is no guess"


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
