"""Fixtures that several test modules of the programs share."""

from pathlib import Path

import pytest

from tests.runs import Lab, make_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Bases, model and blends for training."""
    return make_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def undisturbed(lab: Lab) -> Path:
    """The folder of a run on two ranks that nothing disturbed."""
    status, said = lab.train(lab.root / "train/undisturbed")
    assert status == 0, said
    return lab.root / "train/undisturbed"
