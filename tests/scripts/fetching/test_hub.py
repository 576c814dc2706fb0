"""Files of the Hugging Face hub: found through its library, fetched by us."""

import pytest
from huggingface_hub import constants

from scripts.common.files import bytes_sha256
from scripts.fetching import hub
from scripts.fetching.connection import FetchOptions
from scripts.fetching.verification import AccessDeniedError, AddressError
from tests.scripts.fetching import fakes
from tests.scripts.fetching.server import File, page, status

FILES = {
    "README.md": b"# card",
    "detail_23k.json": b"[]",
    "X_Images/b.parquet": b"PAR1b",
    "X_Images/a.parquet": b"PAR1a",
    "X_Images/deep/c.parquet": b"PAR1c",
    "X_Images/notes.txt": b"x",
}
ADDRESS = "hub://datasets/owner/set"


@pytest.fixture
def endpoint(server, monkeypatch):
    """A server that the library takes for the hub."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    return server


def test_one_file(endpoint, options):
    fakes.hub(endpoint, "owner/set", FILES)
    (found,) = hub.locate(f"{ADDRESS}/detail_23k.json", options)
    assert found.url == f"{endpoint.url}/datasets/owner/set/resolve/{fakes.COMMIT}/detail_23k.json"
    assert (found.name, found.expected.bytes, found.expected.sha256) == ("detail_23k.json", 2, bytes_sha256(b"[]"))
    assert len(endpoint.requests) == 1 and "authorization" not in endpoint.requests[0].headers


def test_a_pattern_stays_in_its_folder(endpoint, options):
    fakes.hub(endpoint, "owner/set", FILES)
    assert [found.name for found in hub.locate(f"{ADDRESS}/X_Images/*.parquet", options)] == ["a.parquet", "b.parquet"]


def test_a_small_file_has_a_size_only(endpoint, options):
    fakes.hub(endpoint, "owner/set", FILES)
    (found,) = hub.locate(f"{ADDRESS}/README.md", options)
    assert found.expected.known() == {"bytes": 6}


def test_a_revision_is_asked_for(endpoint, options):
    fakes.hub(endpoint, "owner/set", FILES, revision="v1.0")
    assert hub.locate("hub://datasets/owner/set@v1.0/README.md", options)[0].name == "README.md"
    with pytest.raises(AddressError, match="404"):
        hub.locate("hub://datasets/owner/set@v2.0/README.md", options)


def test_the_token_is_sent_where_there_is_one(endpoint, options, monkeypatch, tmp_path):
    fakes.hub(endpoint, "owner/set", FILES)
    assert hub.token() is None
    (tmp_path / "token").write_text("hf_stored\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert hub.token() == "hf_stored"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (found,) = hub.locate(f"{ADDRESS}/README.md", options)
    assert endpoint.requests[0].headers["authorization"] == found.headers["authorization"] == "Bearer hf_secret"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("none.json", "contains no none.json"),
        ("X_Images/*.zip", r"contains no X_Images/\*.zip"),
        ("", "should be hub://"),
    ],
)
def test_what_the_repository_does_not_contain(endpoint, options, file, expected):
    fakes.hub(endpoint, "owner/set", FILES)
    with pytest.raises(AddressError, match=expected):
        hub.locate(f"{ADDRESS}/{file}", options)


@pytest.mark.parametrize("code", [401, 403])
def test_a_closed_repository(endpoint, options, code):
    endpoint.routes["/api/datasets/owner/set"] = status(code)
    with pytest.raises(AccessDeniedError, match=f"the hub answers {code}"):
        hub.locate(f"{ADDRESS}/README.md", options)


def test_a_busy_hub_is_asked_again(endpoint, options):
    fakes.hub(endpoint, "owner/set", FILES)
    good = endpoint.routes["/api/datasets/owner/set"]
    endpoint.routes["/api/datasets/owner/set"] = [status(503), status(429), good]
    assert len(hub.locate(f"{ADDRESS}/README.md", options)) == 1
    endpoint.routes["/api/datasets/owner/set"] = status(503)
    with pytest.raises(AddressError, match=r"the hub answers 503 \(tried 4 times\)"):
        hub.locate(f"{ADDRESS}/README.md", options)


def test_a_hub_that_stalls(endpoint):
    endpoint.routes["/api/datasets/owner/set"] = File(b"{}", stall=1)
    with pytest.raises(AddressError, match=r"no data from the hub for 0.2 s"):
        hub.locate(f"{ADDRESS}/README.md", FetchOptions(retries=0, timeout=0.2))


def test_no_hub_at_all(options):
    with pytest.raises(AddressError, match="no connection to the hub"):
        hub.locate(f"{ADDRESS}/README.md", options)


@pytest.mark.parametrize("answer", [page("<html>Sign in</html>"), status(200, b"[]"), status(200, b'{"sha": "1"}')])
def test_something_else_than_a_hub(endpoint, options, answer):
    endpoint.routes["/api/datasets/owner/set"] = answer
    with pytest.raises(AddressError, match="not a Hugging Face hub"):
        hub.locate(f"{ADDRESS}/README.md", options)


def test_the_offline_switch_of_the_library(endpoint, options, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AddressError, match="unset HF_HUB_OFFLINE"):
        hub.locate(f"{ADDRESS}/README.md", options)
    assert endpoint.requests == []


def test_a_name_that_the_hub_does_not_allow(endpoint, options):
    with pytest.raises(AddressError, match="owner/--set"):
        hub.locate("hub://datasets/owner/--set/x", options)
