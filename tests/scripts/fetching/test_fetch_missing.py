"""fetch downloads what is missing: whole files, other forms of them, and single images for a subset."""

import json
import shutil
import zipfile

import pyarrow.parquet as pq
import pytest

from scripts.common.errors import UserError
from scripts.config.registry import SOURCES, Address, Download
from scripts.fetch import fetch
from scripts.fetching.connection import FetchOptions
from tests.scripts.fetching.server import File, Server, status
from tests.synthetic_data import make_synthetic_data

OPTIONS = FetchOptions(retries=2, timeout=5.0, backoff=0.001)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_synthetic_data(tmp_path_factory.mktemp("world"), images=12)


@pytest.fixture
def server():
    with Server() as running:
        yield running


def published(name, server, **paths):
    """The source `name` with its downloads at the server; `paths`: download path to path on the server."""
    downloads = [
        Download(path=item.path, addresses=(Address(url=server.url + paths[item.path]),))
        for item in SOURCES[name].downloads
        if item.path in paths
    ]
    return SOURCES[name].model_copy(update={"downloads": tuple(downloads)})


def zipped(world, out):
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted((world / "coco/train2017").iterdir()):
            archive.write(path, f"train2017/{path.name}")
    return out


def paths_of(raw):
    return pq.read_table(raw / "images.parquet")["path"].to_pylist()


def test_a_missing_file_is_fetched_once_and_its_address_is_in_the_manifest(world, server, tmp_path):
    data = (world / "aokvqa/annotations/aokvqa_v1p0_train.json").read_bytes()
    server.routes["/a.json"] = File(data)
    path = "aokvqa/annotations/aokvqa_v1p0_train.json"
    source = published("aokvqa", server, **{path: "/a.json"})
    manifest = fetch(source, tmp_path / "data", tmp_path / "raw", download=OPTIONS)
    assert manifest["fetched"] == {path: server.url + "/a.json"} and len(server.requests) == 1
    assert (tmp_path / "data" / path).read_bytes() == data
    assert fetch(source, tmp_path / "data", tmp_path / "again", download=OPTIONS) == manifest
    assert len(server.requests) == 1
    (tmp_path / "data" / path).write_text("[1]")
    assert fetch(source, tmp_path / "data", tmp_path / "mine", download=OPTIONS)["fetched"] == {}
    assert len(server.requests) == 1


def test_where_one_form_cannot_be_had_another_is_fetched(world, server, tmp_path):
    rows = [{"caption": "a ball", "image": "val2014/COCO_val2014_000000000001.jpg", "image_id": "coco_1"}]
    server.routes["/karpathy.json"] = File(json.dumps(rows).encode())
    names = {"coco_caption/dataset.json": "/gone.zip", "coco_caption/coco_karpathy_train.json": "/karpathy.json"}
    manifest = fetch(published("coco_caption", server, **names), tmp_path / "data", tmp_path / "raw", download=OPTIONS)
    found = manifest["annotations"]["coco_caption/dataset.json"]
    assert (found["found"], found["container"]) == (["coco_caption/coco_karpathy_train.json"], "any")


def test_what_cannot_be_had_names_every_address_and_the_remedy(server, tmp_path):
    names = {"coco_caption/dataset.json": "/gone.json", "coco_caption/coco_karpathy_train.json": "/away.json"}
    server.routes["/away.json"] = status(403)
    with pytest.raises(UserError) as caught:
        fetch(published("coco_caption", server, **names), tmp_path / "data", tmp_path / "raw", download=OPTIONS)
    message = str(caught.value)
    assert all(
        word in message for word in ("/gone.json", "404", "/away.json", "403", str(tmp_path / "data/coco_caption"))
    )
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(("source", "word"), [("sparkles", "OneDrive"), ("mimicit_cgd", "hf auth login")])
def test_what_a_person_must_get_stops_early_with_the_steps(tmp_path, monkeypatch, source, word):
    monkeypatch.setattr("scripts.fetching.obtain._token", lambda: None)
    with pytest.raises(UserError, match=word):
        fetch(SOURCES[source], tmp_path / "data", tmp_path / "raw", download=OPTIONS)


def test_offline_names_what_is_missing_and_reaches_for_nothing(tmp_path):
    with pytest.raises(UserError, match=r"detail_23k.json: missing, and this run is offline.*place the file at"):
        fetch(SOURCES["llava"], tmp_path / "data", tmp_path / "raw", download=FetchOptions(offline=True))


def test_a_subset_downloads_only_the_selected_images_and_is_not_the_whole_set(world, server, tmp_path):
    archive = zipped(world, tmp_path / "train2017.zip")
    server.routes["/train2017.zip"] = File(archive)
    source = published("coco", server, **{"coco/train2017.zip": "/train2017.zip"})
    paths = paths_of_world(world)[:3]
    data, folders = tmp_path / "data", ["coco/train2017/"]
    manifest = fetch(source, data, tmp_path / "subset", folders, subset=frozenset(paths), download=OPTIONS)
    assert paths_of(tmp_path / "subset") == paths and manifest["subset"] and manifest["images"] == 3
    assert all(range_ for range_ in server.ranges()), "the archive was fetched whole"
    asked = len(server.requests)
    fetch(source, data, tmp_path / "again", folders, subset=frozenset(paths), download=OPTIONS)
    assert len(server.requests) == asked
    more = paths_of_world(world)[:5]
    fetch(source, data, tmp_path / "more", folders, subset=frozenset(more), download=OPTIONS)
    assert paths_of(tmp_path / "more") == more
    # Without a subset these few images are not the whole set: the archive is downloaded and used.
    manifest = fetch(source, data, tmp_path / "whole", folders, download=OPTIONS)
    assert (
        manifest["image_sets"]["coco/train2017/"]["containers"] == ["coco/train2017.zip"] and manifest["images"] == 12
    )
    (data / "coco/train2017.zip").unlink()
    with pytest.raises(UserError, match="train2017/ is not there"):
        fetch(source, data, tmp_path / "never", folders)


def paths_of_world(world):
    return sorted(f"coco/train2017/{path.name}" for path in (world / "coco/train2017").iterdir())


def test_a_subset_of_present_images_lists_only_these(world, tmp_path):
    paths = paths_of_world(world)[2:4]
    fetch(SOURCES["coco"], world, tmp_path / "loose", subset=frozenset(paths))
    assert paths_of(tmp_path / "loose") == paths
    (tmp_path / "data/coco").mkdir(parents=True)
    shutil.copy(zipped(world, tmp_path / "train2017.zip"), tmp_path / "data/coco")
    fetch(SOURCES["coco"], tmp_path / "data", tmp_path / "zip", subset=frozenset(paths))
    assert paths_of(tmp_path / "zip") == paths


def test_images_that_no_archive_holds_stay_missing(world, server, tmp_path):
    train, val = zipped(world, tmp_path / "train2017.zip"), tmp_path / "val2017.zip"
    with zipfile.ZipFile(val, "w") as archive:
        archive.write(next((world / "coco/train2017").iterdir()), "val2017/000000000139.jpg")
    server.routes |= {"/train2017.zip": File(train), "/val2017.zip": File(val)}
    names = {"coco/train2017.zip": "/train2017.zip", "coco/val2017.zip": "/val2017.zip"}
    paths = {*paths_of_world(world)[:2], "coco/train2017/000000000139.jpg", "coco/train2017/999999999999.jpg"}
    fetch(
        published("coco", server, **names),
        tmp_path / "data",
        tmp_path / "raw",
        subset=frozenset(paths),
        download=OPTIONS,
    )
    assert (tmp_path / "data/coco/val2017/000000000139.jpg").is_file()
    assert paths_of(tmp_path / "raw")[:2] == paths_of_world(world)[:2]
