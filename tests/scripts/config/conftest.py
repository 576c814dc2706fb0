"""What the tests of configurations share."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_network_and_no_gpu(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
