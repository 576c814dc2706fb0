"""Which errors are retried, for how long, and the message when they persist."""

import time

import pytest

from scripts.fetching.connection import (
    AccessDeniedError,
    FetchOptions,
    TransientError,
    get,
    new_session,
    retry,
    retry_after,
    retry_delay,
)
from scripts.fetching.verification import AddressError
from tests.scripts.fetching.server import status

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("-3", 0.0),
        ("²", 0.0),
    ],
)
def test_what_a_server_asks_for(value, seconds):
    assert retry_after(value, NOW) == seconds


def test_pauses_double_and_end_somewhere():
    options = FetchOptions(backoff=1.5)
    assert [retry_delay(failures, 0.0, options) for failures in (1, 2, 3, 4)] == [1.5, 3.0, 6.0, 12.0]
    assert retry_delay(1, 20.0, options) == 20.0
    assert retry_delay(1, 86_400.0, options) == retry_delay(50, 0.0, options) == 300.0


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again_when_it_says(server, options, monkeypatch, code):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.routes["/x"] = [status(code, Retry_After="2"), status(code), status(200, b"here")]

    def ask():
        with new_session() as session, get(session, f"{server.url}/x", options) as response:
            return response.content

    assert retry(ask, options, "x") == b"here"
    assert pauses == [2.0, 2 * options.backoff]


@pytest.mark.parametrize("code", [400, 404, 410, 451, 501])
def test_a_final_answer_is_not_asked_for_twice(server, options, code):
    server.routes["/x"] = status(code)
    with pytest.raises(AddressError, match=f"answers {code}") as caught:
        retry(lambda: get(new_session(), f"{server.url}/x", options).__enter__(), options, "x")
    assert caught.value.status == code and len(server.requests) == 1


@pytest.mark.parametrize("code", [401, 403])
def test_a_closed_door_has_its_own_name(server, options, code):
    server.routes["/x"] = status(code)
    with pytest.raises(AccessDeniedError, match=f"answers {code}"):
        get(new_session(), f"{server.url}/x", options).__enter__()


def test_trouble_without_end_ends(options):
    calls = []

    def fail():
        calls.append(1)
        raise TransientError("the connection was lost")

    with pytest.raises(AddressError, match=r"the connection was lost \(tried 4 times\)"):
        retry(fail, options, "x")
    assert len(calls) == 1 + options.retries


def test_a_gain_starts_the_count_again(options):
    have = []

    def crawl():
        have.append(1)
        if len(have) < 20:
            raise TransientError("the connection was lost")
        return "done"

    assert retry(crawl, options, "x", lambda: len(have)) == "done"


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://127.0.0.1:1/x", "refused"), ("http://no.such.host.invalid/x", "host name cannot be resolved")],
)
def test_no_connection_is_described(options, url, message):
    with pytest.raises(TransientError, match=message):
        get(new_session(), url, options).__enter__()


def test_going_round_in_circles_is_final(server, options):
    server.routes["/x"] = status(302, Location=f"{server.url}/x")
    with pytest.raises(AddressError, match="not a usable URL"):
        get(new_session(), f"{server.url}/x", options).__enter__()
