"""The whole graph is built once for all tests of this folder."""

import shutil

import pytest

from tests.workflow.project import Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A project whose whole graph has been built; tests must not change it (copy it with `scratch`)."""
    project = Project.create(tmp_path_factory.mktemp("graph") / "project")
    project.snakemake()
    return project


@pytest.fixture
def scratch(finished, tmp_path):
    """A copy of the finished project that a test may change."""
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")
