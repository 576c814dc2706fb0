"""The server over HTTP: the official OpenAI client, plain requests, and invalid ones."""

import http.client
import json
import socket
import threading
import time
from io import BytesIO
from urllib.parse import urlsplit

import openai
import pytest
import requests

from scripts.serving.app import Limits
from scripts.serving.request_guard import BodyLimits
from tests.scripts.evaluation.trained_model import trained
from tests.scripts.serving.running_server import COLOUR, COUNT, data_url, load, png, question, serving, shown

__all__ = ["trained"]

PATIENCE = 300
LIMITS = Limits(
    timeout=600,
    max_images=5,
    max_image_bytes=100_000,
    bodies=BodyLimits(max_bytes=400_000),
    upload_cache_bytes=150_000,
    pixel_cache_bytes=100_000,
)


@pytest.fixture(scope="module")
def server(trained):
    with serving(load(trained.model), limits=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def chat(server, messages, **options) -> requests.Response:
    body = {"model": "tiny", "messages": messages} | options
    return requests.post(f"{server.url}v1/chat/completions", json=body, timeout=PATIENCE)


def post(server, data: bytes, **headers: str) -> requests.Response:
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(f"{server.url}v1/chat/completions", data=data, headers=headers, timeout=PATIENCE)


def works(server) -> None:
    """Assert that the server still answers."""
    answer = chat(server, [question(COLOUR, "green")])
    assert answer.json()["choices"][0]["message"]["content"] == "It is green."


def test_a_conversation_with_the_official_client(client):
    messages = [question(COLOUR, "green")]
    first = client.chat.completions.create(model="tiny", messages=messages)
    assert first.choices[0].message.content == "It is green." and first.choices[0].finish_reason == "stop"
    messages += [first.choices[0].message.model_dump(include={"role", "content"}), question(COUNT, "red")]
    stream = client.chat.completions.create(
        model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}, temperature=0
    )
    chunks = list(stream)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(model="tiny", messages=messages)
    assert streamed == whole.choices[0].message.content and streamed
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage.prompt_tokens == whole.usage.prompt_tokens > first.usage.prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens, (
        "the first round is not computed again"
    )


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    model = client.models.retrieve("tiny")
    assert model.attention == "mmca" and model.context == 1024
    with pytest.raises(openai.NotFoundError, match="no model 'huge'"):
        client.models.retrieve("huge")


def test_uploaded_images(client, server):
    file = client.files.create(file=("blue.png", png("blue"), "image/png"), purpose="vision")
    assert client.files.retrieve(file.id).filename == "blue.png"
    for part in (
        {"type": "file", "file": {"file_id": file.id}},
        {"type": "image_file", "image_file": {"file_id": file.id}},
        {"type": "image_url", "image_url": {"url": file.id}},
    ):
        answer = chat(server, [{"role": "user", "content": [part, {"type": "text", "text": COLOUR}]}])
        assert answer.json()["choices"][0]["message"]["content"] == "It is blue."
    client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError, match="upload it again"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": [part]}])
    with pytest.raises(openai.BadRequestError, match="not an image"):
        client.files.create(file=("notes.txt", b"words"), purpose="vision")
    first = client.files.create(file=("a.png", big_png(1), "image/png"), purpose="vision")
    client.files.create(file=("b.png", big_png(2), "image/png"), purpose="vision")
    with pytest.raises(openai.NotFoundError):  # the memory of uploads is bounded
        client.files.retrieve(first.id)
    assert server.service.image_store.uploads.currsize <= LIMITS.upload_cache_bytes


def big_png(seed: int) -> bytes:
    """An image of some 90 kB."""
    import numpy as np
    from PIL import Image

    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (173, 173, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_system_texts_and_images_within_the_text(client):
    parts = [{"type": "text", "text": "Which colour"}, *shown("red"), {"type": "text", "text": "is the first image?"}]
    messages = [{"role": "developer", "content": "Answer."}, {"role": "user", "content": parts}]
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=16).choices[0].message.content


TEXT = [{"role": "user", "content": COLOUR}]


@pytest.mark.parametrize(
    ("change", "status", "code", "param", "message"),
    [
        ({"model": "huge"}, 404, "model_not_found", "model", "served models: tiny"),
        ({"model": 3}, 400, "invalid_value", "model", "string"),
        ({"messages": []}, 400, "invalid_value", "messages", "at least 1"),
        ({"messages": "hello"}, 400, "invalid_value", "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_value", "messages.0.role", "robot"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "invalid_value", "messages.0.content", "list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, 400, "unsupported_part", None, "not video"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "invalid_value", None, "surrogate"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "invalid_conversation", None, "is empty"),
        ({"messages": TEXT * 2}, 400, "invalid_conversation", None, "after a user message"),
        ({"messages": [*TEXT, {"role": "assistant", "content": "x"}]}, 400, "invalid_conversation", None, "the last"),
        ({"messages": [{"role": "user", "content": "w " * 2000}]}, 400, "context_length_exceeded", None, "1024"),
        ({"temperature": 3}, 400, "invalid_value", "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens", "greater"),
        ({"stop": ["a"] * 5}, 400, "invalid_value", "stop", "up to 4"),
        ({"n": 2}, 400, "unsupported_parameter", "n", "not supported"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools", "not supported"),
        ({"nonsense": 1}, 400, "unknown_parameter", "nonsense", "nonsense"),
    ],
)
def test_bad_requests(server, change, status, code, param, message):
    answer = post(server, json.dumps({"model": "tiny", "messages": TEXT} | change).encode())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code) and message in error["message"]
    assert error["type"] == "invalid_request_error" and (param is None or error["param"] == param)


def test_harmless_and_long_requests_are_answered(server):
    answer = chat(server, TEXT, user="me", n=1, response_format={"type": "text"}, max_tokens=10**9, tools=None).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    answer = chat(server, TEXT, max_tokens=2).json()
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("url", "status", "code", "message"),
    [
        ("http://127.0.0.1:1/secret.png", 400, "image_url_not_fetched", "downloads nothing"),
        ("file:///etc/passwd", 400, "invalid_image_url", "must have the form"),
        ("data:image/png,xyz", 400, "invalid_image_url", "must have the form"),
        ("data:image/png;base64,@@@", 400, "invalid_image_url", "not valid base64"),
        ("data:image/png;base64,", 400, "invalid_image", "not an image"),
        (data_url(b"plain words"), 400, "invalid_image", "not an image"),
        (data_url(png("red")[:-25]), 400, "invalid_image", "damaged"),
        (data_url(png("red")[:20]), 400, "invalid_image", ""),
        (data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), 400, "invalid_image", "EPS"),
        ("file-0", 404, "file_not_found", "upload it again"),
        (data_url(b"\x00" * 110_000), 413, "image_too_large", "at most 100,000"),
    ],
)
def test_bad_images(server, url, status, code, message):
    parts = [{"type": "text", "text": COLOUR}, {"type": "image_url", "image_url": {"url": url}}]
    answer = chat(server, [{"role": "user", "content": parts}])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert message in error["message"] and "messages.0.content.1" in error["message"]
    works(server)


def test_a_decompression_bomb_is_refused(server):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    answer = chat(server, [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(bomb)}}]}])
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_image"


def test_a_thousand_images(server):
    tiny = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}}
    messages = [{"role": "user", "content": [tiny] * 1000}]
    answer = chat(server, messages)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "too_many_images"
    assert "1000 images; at most 5" in answer.json()["error"]["message"]


def test_two_hundred_megabytes(server):
    """Refused without being stored, with and without Content-Length."""
    piece = b"x" * (1 << 20)
    for length in (str(200 << 20), None):
        url = urlsplit(server.url)
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=PATIENCE)
        body = (piece for _ in range(200))
        headers = {"Content-Type": "application/json"} | ({"Content-Length": length} if length else {})
        connection.request("POST", "/v1/chat/completions", body, headers, encode_chunked=length is None)
        answer = connection.getresponse()
        assert answer.status == 413 and json.loads(answer.read())["error"]["code"] == "request_too_large"
        connection.close()
    works(server)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"model": "tiny", "messages": [1]}'])
def test_malformed_bodies(server, body):
    answer = post(server, body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


def test_other_addresses_and_methods(server):
    for method, path, status in (
        ("GET", "v1/nothing", 404),
        ("GET", "v1/chat/completions", 405),
        ("GET", "page/../app.py", 404),
        ("GET", "examples/0/0", 404),
        ("POST", "v1/files", 400),
    ):
        answer = requests.request(method, server.url + path, timeout=PATIENCE)
        assert answer.status_code == status and answer.json()["error"]["message"], path
    answer = post(server, b"{}", Content_Type="text/plain")
    assert answer.status_code == 415, "a form of another site could send this"
    assert requests.get(f"{server.url}health", timeout=PATIENCE).json()["status"] == "ok"


def test_a_disconnected_client_frees_its_batch_slot(server, client):
    engine = server.service.models["tiny"].engine
    long = {"model": "tiny", "messages": TEXT, "max_tokens": 900, "temperature": 2.0, "seed": 3, "stream": True}
    with requests.post(f"{server.url}v1/chat/completions", json=long, stream=True, timeout=PATIENCE) as stream:
        next(stream.iter_lines())
    body = json.dumps(long | {"stream": False}).encode()
    url = urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port), PATIENCE) as plain:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
        plain.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.05)
    until = time.monotonic() + PATIENCE
    while engine.state()["running"] or engine.state()["waiting"]:
        assert time.monotonic() < until, "answers to disconnected clients are still being generated"
        time.sleep(0.02)
    works(server)


def test_back_pressure_and_timeouts(trained):
    served = load(trained.model, max_batch_size=1, max_queue_size=1)
    with serving(served, limits=Limits(timeout=4.0)) as server:
        hook = served.engine.model.get_decoder().register_forward_pre_hook(lambda *args: time.sleep(0.1))
        answers = []
        long = {"max_tokens": 900, "temperature": 2.0, "seed": 3}
        threads = [threading.Thread(target=lambda: answers.append(chat(server, TEXT, **long))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        statuses = sorted(answer.status_code for answer in answers)
        assert len(statuses) == 6 and statuses[0] == 429 and statuses[-1] == 504
        for answer in answers:
            assert (answer.status_code in (429, 503)) == ("Retry-After" in answer.headers)
            assert answer.json()["error"]["code"] in ("overloaded", "timeout")
        events = chat(server, TEXT, stream=True, **long).text.split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "timeout"
        assert events[-2] == "data: [DONE]"
        hook.remove()
        server.service.limits = LIMITS
        works(server)


def test_bodies_share_a_bounded_memory(trained):
    """While one client sends slowly, another large request is refused, and small ones are answered."""
    bodies = BodyLimits(max_bytes=100_000, max_total_bytes=150_000)
    with serving(load(trained.model), limits=Limits(timeout=600, bodies=bodies)) as server:
        url = urlsplit(server.url)
        with socket.create_connection((url.hostname, url.port), PATIENCE) as slow:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + b" " * 70_000)
            until = time.monotonic() + PATIENCE
            while (answer := post(server, b" " * 90_000)).status_code != 429:
                assert time.monotonic() < until
            assert answer.headers["Retry-After"] == "1"
            works(server)
        while (answer := post(server, b" " * 90_000)).status_code == 429:
            assert time.monotonic() < until, "the memory of a disconnected client is still reserved"
        assert answer.status_code == 400


def test_key_host_and_origin(trained):
    with serving(load(trained.model), key="secret", hosts=["127.0.0.1", "localhost"]) as server:
        get = requests.get
        assert get(server.url, timeout=PATIENCE).status_code == 200, "the page itself holds no data"
        for path in ("v1/models", "about", "v1/files/x", "examples/0/0"):
            answer = get(server.url + path, timeout=PATIENCE)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            wrong = get(server.url + path, headers={"Authorization": "Bearer s\u00e9cret".encode()}, timeout=PATIENCE)
            assert wrong.status_code == 401
        good = {"Authorization": "Bearer secret"}
        assert get(f"{server.url}v1/models", headers=good, timeout=PATIENCE).status_code == 200
        for bad, code in (({"Host": "evil.example"}, "host_not_allowed"), ({"Origin": "http://evil.example"}, None)):
            answer = get(f"{server.url}v1/models", headers=good | bad, timeout=PATIENCE)
            assert answer.status_code == 403 and answer.json()["error"]["code"] == (code or "origin_not_allowed")
        own = {"Origin": server.url.rstrip("/")}
        assert get(f"{server.url}v1/models", headers=good | own, timeout=PATIENCE).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.url}v1", api_key="wrong", max_retries=0).models.list()
