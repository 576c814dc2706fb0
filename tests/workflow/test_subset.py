"""A subset of published data through the whole graph, downloaded from a local server that the registry names."""

import copy
import zipfile

import pytest
import yaml

from tests.scripts.fetching.server import File, Server
from tests.synthetic_data import make_synthetic_data
from tests.workflow.project import TINY, Project

CONFIG = copy.deepcopy(TINY) | {
    "data_path": "data",
    "download": "missing",
    "subset": {"images": 30},
    "runs": {},
    "suites": {},
}
CONFIG["blends"] = {
    "mixed": CONFIG["blends"]["mixed"] | {"datasets": {"llava": {}, "aokvqa": {}, "coco_caption": {}}},
}
FILES = (
    "llava/detail_23k.json",
    "llava/complex_reasoning_77k.json",
    "aokvqa/annotations/aokvqa_v1p0_train.json",
    "coco_caption/dataset.json",
)


@pytest.fixture
def world(tmp_path):
    return make_synthetic_data(tmp_path / "world", images=120, rows={"aokvqa": 1.0})


@pytest.fixture
def server(world, tmp_path):
    archive = tmp_path / "train2017.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((world / "coco/train2017").iterdir()):
            packed.write(path, f"train2017/{path.name}")
    with Server() as running:
        running.routes = {f"/{path}": File((world / path).read_bytes()) for path in FILES}
        running.routes["/coco/train2017.zip"] = File(archive)
        yield running


def _published_at(project, url):
    place = project.folder / "scripts/adapters/sources.yaml"
    table = yaml.safe_load(place.read_text())
    for source in table:
        source["downloads"] = [
            {"path": item["path"], "addresses": [f"{url}/{item['path']}"]} for item in source.get("downloads", [])
        ]
    place.write_text(yaml.safe_dump(table))


def test_a_subset_is_downloaded_and_built(world, server, tmp_path):
    project = Project.create(tmp_path / "project", CONFIG)
    _published_at(project, server.url)
    project.snakemake("data")
    fetched = {path.name for path in (project.folder / "data/coco/train2017").iterdir()}
    assert 30 <= len(fetched) <= 31
    archive = [request for request in server.requests if request.path.endswith(".zip")]
    assert archive and all("range" in request.headers for request in archive)
    names = [request.path for request in server.requests if request.path.endswith(".json")]
    assert sorted(names) == sorted(f"/{path}" for path in FILES)
    assert project.jobs("data") == {}
    reports = {path.stem: yaml.safe_load(path.read_text()) for path in (project.folder / "out/records").glob("*.json")}
    for report in reports.values():
        assert set(report["dropped"]) == {"outside_subset"} and report["records"] > 0
    # A file put in the place of a fetched one is the user's from then on, and is read again.
    place = project.folder / "data" / FILES[2]
    place.write_bytes(place.read_bytes() + b"\n")
    jobs = project.jobs("data")
    assert jobs["fetch"] == 2 and jobs["select_subset"] == 1, (
        "its own listing, and that of the images which it helped to choose"
    )
