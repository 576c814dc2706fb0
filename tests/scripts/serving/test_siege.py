"""Clients that take all they can get, on real sockets, while another client must be answered.

All addresses of 127.0.0.0/8 lead to this machine, so that a test has several clients.
"""

import http.client
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import pytest

from scripts.serving.app import Limits
from scripts.serving.connections import ConnectionLimits, fitting_connections
from scripts.serving.request_guard import BodyLimits
from tests.scripts.evaluation.trained_model import trained
from tests.scripts.serving.running_server import COLOUR, data_url, load, png, question, serving

__all__ = ["trained"]

PATIENCE = 300
ATTACKER, OTHER = "127.0.0.1", "127.0.0.2"
LONG = 600.0  # longer than any test: nothing but the bound that is tested may help


@pytest.fixture
def served(trained):
    return load(trained.model, max_batch_size=4, max_queue_size=8)


def open_connection(server, client: str = ATTACKER) -> socket.socket:
    url = urlsplit(server.url)
    return socket.create_connection((url.hostname, url.port), PATIENCE, source_address=(client, 0))


def open_all(server, stack: ExitStack) -> None:
    """Open connections until the system refuses one."""
    while True:
        stack.enter_context(open_connection(server))


def head(server, *headers: str, method: str = "POST", path: str = "/v1/chat/completions") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(server.url).netloc}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def ask(server, body: dict, client: str = OTHER, **headers: str) -> tuple[int, dict]:
    """Send a chat request as `client`; return the status and the JSON."""
    url = urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=PATIENCE, source_address=(client, 0))
    headers = {"Content-Type": "application/json"} | headers
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": "tiny"} | body), headers)
    answer = connection.getresponse()
    result = answer.status, json.loads(answer.read())
    connection.close()
    return result


def works(server, client: str = OTHER, **headers: str) -> None:
    """Assert that a client is answered."""
    status, answer = ask(server, {"messages": [question(COLOUR, "green")]}, client, **headers)
    assert status == 200 and answer["choices"][0]["message"]["content"] == "It is green."


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection, seen without waiting."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def wait(happened) -> None:
    until = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


@contextmanager
def many_files(count: int) -> Iterator[None]:
    """Let this process open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"the hard limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("begin", [b"", b"POST /v1/chat/comp"])
def test_half_open_connections_stop_nobody(served, begin):
    limits = ConnectionLimits(head_timeout=LONG, idle_timeout=LONG)
    with many_files(4000), serving(served, connections=limits) as server, ExitStack() as stack:
        held = [stack.enter_context(open_connection(server)) for _ in range(1100)]
        for connection in held:
            with suppress(OSError):  # the server has closed most of them
                connection.send(begin)
        works(server, OTHER)
        works(server, ATTACKER)
        table = server.connections
        assert table.counts[ATTACKER] <= limits.max_client_connections
        assert sum(map(is_closed, held)) >= 1100 - limits.max_client_connections


def test_without_file_descriptors_it_waits_quietly(served, capfd):
    limits = ConnectionLimits(head_timeout=LONG, idle_timeout=LONG)
    with serving(served, connections=limits) as server:
        works(server)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with ExitStack() as stack:
            # The clients are in this process too, and so use descriptors of the same limit.
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            with pytest.raises(OSError, match="Too many open files"):
                open_all(server, stack)
            time.sleep(2.5)  # three attempts to accept
        works(server)
    errors = capfd.readouterr().err
    assert errors.count("no connection can be accepted") == 1 and "Traceback" not in errors


def test_the_limit_of_open_files_bounds_the_connections(capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert fitting_connections(10**7) == max(16, hard - 512) and "ulimit -n" in capfd.readouterr().err
    assert fitting_connections(10) == 10
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_total_is_shared(served):
    limits = ConnectionLimits(head_timeout=LONG, idle_timeout=LONG, max_connections=20, max_client_connections=20)
    with serving(served, connections=limits) as server, ExitStack() as stack:
        early = stack.enter_context(open_connection(server, OTHER))
        for _ in range(40):
            stack.enter_context(open_connection(server))
        wait(lambda: server.connections.counts.total() == 20)
        assert not is_closed(early), "a client with few connections keeps them"
        works(server, "127.0.0.3")


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_heads_must_arrive_in_time_byte_by_byte_too(served, first):
    with serving(served, connections=ConnectionLimits(head_timeout=0.5, idle_timeout=LONG)) as server:
        with open_connection(server) as connection:
            if first:
                connection.sendall(first)
                assert connection.recv(9).startswith(b"HTTP/1.1 ")
                wait(lambda: not server.connections.waiting or connection.setblocking(False) is None)
            closed = False
            for byte in head(server, "X-Long: " + "x" * 10_000):
                try:
                    connection.setblocking(True)
                    connection.sendall(bytes([byte]))
                except OSError:
                    closed = True
                    break
                time.sleep(0.02)
            assert closed
        works(server)


def test_idle_connections_are_closed(served):
    limits = ConnectionLimits(idle_timeout=1, head_timeout=LONG)
    with serving(served, connections=limits) as server, open_connection(server) as connection:
        connection.sendall(head(server, method="GET", path="/health"))
        data = b""
        while piece := connection.recv(1 << 16):
            data += piece
        assert data.startswith(b"HTTP/1.1 200") and data.endswith(b"}")


def test_announced_bodies_reserve_nothing(served):
    limits = Limits(timeout=600, bodies=BodyLimits(timeout=LONG))
    with serving(served, limits=limits) as server, ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(open_connection(server))
            announced = head(server, "Content-Type: application/json", f"Content-Length: {32 << 20}")
            connection.sendall(announced + b"{")
        works(server, OTHER)
        works(server, ATTACKER)


def test_a_body_that_stops_is_refused(served):
    limits = Limits(timeout=600, bodies=BodyLimits(timeout=0.3))
    with serving(served, limits=limits) as server, open_connection(server) as connection:
        connection.sendall(head(server, "Content-Type: application/json", "Content-Length: 1000") + b"{")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_ten_million_characters_stop_nobody(served, monkeypatch):
    tokenised = []
    encode = served.processor.encode
    monkeypatch.setattr(
        served.processor, "encode", lambda messages: tokenised.append(len(str(messages))) or encode(messages)
    )
    with serving(served) as server:
        for size in (10_000_000, 400_000):
            status, answer = ask(server, {"messages": [{"role": "user", "content": "a" * size}]}, ATTACKER)
            assert status == 400 and answer["error"]["code"] == "context_length_exceeded", answer
        assert tokenised == [], "a text that cannot fit is refused before it is tokenised"
        works(server)


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "tiny", "messages": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"model": "tiny", "messages": [{"role": ' + "[" * 500 + "]" * 500 + ', "content": "x"}]}',
        '{"model": "tiny", "tools": ' + "[" * 900 + "]" * 900 + ', "messages": [{"role": "user", "content": "x"}]}',
        '{"model": "tiny", "messages": [' + "1," * 3_000_000 + "1]}",
        '{"model": "tiny", "messages": [' + "1," * 300_000 + "1]}",
        '{"model": "tiny", "messages": [{"role": "user", "content": [' + '"x",' * 100_000 + '"x"]}]}',
        '{"model": "tiny", "messages": [{"role": "' + "x" * 5_000_000 + '", "content": "x"}]}',
        '{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "' + "k" * 5_000_000 + '": 1}',
        '{"model": "' + "\\ud800" * 100_000 + '", "messages": [{"role": "user", "content": "x"}]}',
        '{"model": "tiny", "seed": ' + "9" * 5000 + ', "messages": [{"role": "user", "content": "x"}]}',
        '{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file-'
        + "x" * 5_000_000
        + '"}}]}]}',
    ],
    ids=["nested", "role", "tools", "values", "messages", "parts", "long-role", "key", "surrogates", "digits", "file"],
)
def test_odd_json_is_refused_in_few_words(served, body):
    with serving(served) as server, open_connection(server) as connection:
        announced = head(server, "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
        connection.sendall(announced + body.encode())
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404")) and len(answer) < 4000, answer[:300]
        works(server)


def send_and_read(server, data: bytes) -> bytes:
    """The beginning of the answer to bytes, or nothing if the server closes the connection."""
    with open_connection(server) as connection:
        try:
            connection.sendall(data)
            return connection.recv(1 << 16)
        except OSError:
            return b""


def test_odd_requests(served):
    with serving(served) as server:
        assert send_and_read(server, head(server, *[f"X-{n}: 1" for n in range(2000)])).startswith(b"HTTP/1.1 400")
        assert send_and_read(server, head(server, "X: " + "x" * 60_000)).startswith(b"HTTP/1.1 400")
        for both in ("Content-Length: 5", "Content-Length: 5\r\nContent-Length: 6"):
            smuggled = head(server, both, "Transfer-Encoding: chunked") + b"0\r\n\r\n"
            assert send_and_read(server, smuggled).startswith(b"HTTP/1.1 400")
        crumbs = head(server, "Content-Type: application/json", "Transfer-Encoding: chunked") + b"1\r\n{\r\n" * 20_000
        assert send_and_read(server, crumbs)[:12] in (b"HTTP/1.1 400", b"")
        works(server)


def test_a_client_that_does_not_read_is_cut_off(served):
    """It asks again and again on one connection, and reads nothing."""
    with serving(served, connections=ConnectionLimits(write_timeout=0.5)) as server:
        with open_connection(server) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            # A close without a reset would leave megabytes with the kernel, and the client waiting for two minutes.
            connection.settimeout(30)
            request = head(server, method="GET", path="/page/chat.js")

            def ask_on_and_on() -> None:
                while True:
                    connection.sendall(request)

            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                ask_on_and_on()
        works(server)


def test_one_client_cannot_take_queue_and_batch(served):
    with serving(served) as server:
        hook = served.engine.model.get_decoder().register_forward_pre_hook(lambda *_: time.sleep(0.05))
        answers: list[tuple[int, dict]] = []
        long = {"messages": [{"role": "user", "content": COLOUR}], "max_tokens": 900}
        # Answers of the attacker end at their maximum length only.
        eos, served.engine._eos_tokens = served.engine._eos_tokens, frozenset()
        threads = [threading.Thread(target=lambda: answers.append(ask(server, long, ATTACKER))) for _ in range(12)]
        state = served.engine.state
        for number, thread in enumerate(threads):
            thread.start()
            if number == 3:  # later ones would find the queue full, as no step has begun
                wait(lambda: state()["running"] == 4)
        wait(lambda: state()["running"] == 4 and state()["waiting"] == 8)
        served.engine._eos_tokens = eos
        running = [streamer.job for streamer in served.engine._running]
        works(server, OTHER)
        assert any(job in [streamer.job for streamer in served.engine._running] for job in running), "it did not wait"
        hook.remove()
        for job in list(served.engine._waiting):
            job.cancel()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(status for status, _ in answers).count(429) == 1, "the last one made room"


def test_one_client_cannot_push_out_what_others_uploaded(trained):
    limits = Limits(timeout=600, upload_cache_bytes=3000)
    with serving(load(trained.model), limits=limits) as server:
        mine = upload(server, OTHER, png("green"))
        theirs = [upload(server, ATTACKER, png("red", (40, 30 + n))) for n in range(60)]
        image = {"type": "image_url", "image_url": {"url": mine}}
        status, answer = ask(
            server, {"messages": [{"role": "user", "content": [image, {"type": "text", "text": COLOUR}]}]}
        )
        assert status == 200 and answer["choices"][0]["message"]["content"] == "It is green."
        store = server.service.image_store.uploads
        assert store.currsize <= 3000 and store.get(theirs[0]) is None and store.get(theirs[-1]) is not None


def upload(server, client: str, data: bytes) -> str:
    url = urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=PATIENCE, source_address=(client, 0))
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + data + b"\r\n--x--\r\n"
    connection.request("POST", "/v1/files", part, {"Content-Type": "multipart/form-data; boundary=x"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["id"]


def test_guesses_of_the_key_lock_nobody_else_out(served):
    with serving(served, key="secret") as server:
        body = {"messages": [question(COLOUR, "green")]}
        statuses = [ask(server, body, ATTACKER, Authorization=f"Bearer {n}")[0] for n in range(30)]
        assert statuses == [401] * 20 + [429] * 10
        works(server, OTHER, Authorization="Bearer secret")


def test_forwarded_addresses_count_only_from_a_trusted_proxy(served):
    body = {"messages": [question(COLOUR, "green")]}
    for trusted, last in ((frozenset(), 429), (frozenset({ATTACKER}), 401)):
        with serving(served, key="secret", trusted=trusted) as server:
            for n in range(25):
                headers = {"Authorization": "Bearer x", "X-Forwarded-For": f"10.0.0.{n}"}
                status, _ = ask(server, body, ATTACKER, **headers)
            assert status == last


def test_uploads_that_are_interrupted_hold_nothing(served):
    with serving(served) as server:
        for _ in range(30):
            with open_connection(server) as connection:
                form = head(
                    server, "Content-Type: multipart/form-data; boundary=x", "Content-Length: 9000000", path="/v1/files"
                )
                part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 2_000_000
                connection.sendall(form + part)
        works(server)
        wait(lambda: server.connections.counts[ATTACKER] == 0)
        assert data_url(png("red"))
