"""One tiny VisualChat folder for all tests of the model."""

from __future__ import annotations

import pytest

from tests.tiny_models import make_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), large_weights=True)


@pytest.fixture(scope="session")
def processor(folder):
    from model.processing import VisualChatProcessor

    return VisualChatProcessor.from_pretrained(folder)


@pytest.fixture
def model(folder):
    """A fresh copy: tests may train it."""
    from model.modeling import VisualChatForConditionalGeneration

    return VisualChatForConditionalGeneration.from_pretrained(folder)
