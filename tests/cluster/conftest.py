"""A Slurm of two nodes and a laboratory for training, once for all tests of this folder.

They need Debian's `slurm-wlm` and `munge`, and root: `make test-cluster` sees to it. Elsewhere they are skipped.
"""

import pytest

from tests.cluster.slurm import Slurm, available
from tests.runs import TrainingSetup, make_training_setup


def pytest_collection_modifyitems(items):
    here = [item for item in items if "tests/cluster/" in str(item.path)]
    for item in here:
        item.add_marker(pytest.mark.long)
        if not available():
            item.add_marker(pytest.mark.skip(reason="no Slurm here, or not root: `make test-cluster` installs it"))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A running cluster. A cancelled job has 20 seconds to save."""
    with Slurm(tmp_path_factory.mktemp("slurm") / "cluster", kill_wait=20) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> TrainingSetup:
    """Bases, model and blends for training."""
    return make_training_setup(tmp_path_factory.mktemp("lab"))
