"""Fixtures that several test modules of the programs share."""

from pathlib import Path

import pytest

from tests.runs import TrainingSetup, make_training_setup


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> TrainingSetup:
    """Bases, model and blends for training."""
    return make_training_setup(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def undisturbed(lab: TrainingSetup) -> Path:
    """The folder of a run on two ranks that nothing disturbed, started as a user starts it."""
    status, output = lab.train(lab.root / "train/undisturbed", preloaded=False)
    assert status == 0, output
    return lab.root / "train/undisturbed"
