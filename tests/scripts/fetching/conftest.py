"""What every test of the download layer has: a server of its own, and no way to the world outside."""

import pytest
from huggingface_hub import constants

from scripts.fetching.connection import FetchOptions
from tests.scripts.fetching.server import Server


@pytest.fixture
def server():
    """A server that answers as the test says."""
    with Server() as running:
        yield running


@pytest.fixture
def options():
    """FetchOptions of a hurry."""
    return FetchOptions(retries=3, timeout=5.0, connections=2, backoff=0.001)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """Neither the proxy nor the hub login of the user who runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
