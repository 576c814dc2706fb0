"""Every fault of the damaged twin ends in its report under its word, and nothing stops or changes beside it."""

from typing import get_args

import pytest

from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.config.miniature import Fault, MiniatureConfig
from scripts.config.registry import DATASETS, REGISTRY, SOURCES
from scripts.convert import convert
from scripts.media.store import MediaStore
from scripts.media_index import write_index
from scripts.shard import write_shard
from scripts.synthetic.faults import FAULTS
from scripts.validate import validate_dataset, validate_source
from tests.synthetic_data import fetch_all, make_synthetic_data

ROWS = {"aokvqa": 1.0, "minigpt4": 0.2, "ocr_vqa": 0.2, "sparkles": 0.3, "mimicit": 0.2}
ADAPTED = [name for name, dataset in DATASETS.items() if dataset.adapter]


class Built:
    """A world with `faults`, and what the data steps make of it."""

    def __init__(self, folder, faults):
        self.data = make_synthetic_data(folder, images=60, rows=ROWS, faults=faults)
        raw = fetch_all(self.data, folder)
        self.verdicts = {source: validate_source(source, raw[source]) for source in SOURCES}
        self.media, self.manifests = {}, {}
        for source in SOURCES:
            if SOURCES[source].folders:
                self.media[source] = folder / "media" / source
                write_shard(source, raw[source], 1, 0, self.media[source])
                self.manifests[source] = write_index(source, 1, raw[source], self.media[source])
        self.reports = {}
        for name in ADAPTED:
            mine = {source: raw[source] for source in REGISTRY.sources_of(name)}
            self.verdicts[name] = validate_dataset(name, mine)
            media = {source: self.media[source] for source in REGISTRY.image_sources(name)}
            self.reports[name] = convert(name, mine, media, folder / "records")

    def count(self, fault):
        """How often the word of `fault` stands in its report."""
        if fault.where in self.manifests:
            return self.manifests[fault.where][fault.kind].get(fault.reason, 0)
        return self.reports[fault.where][fault.kind].get(fault.reason, {"count": 0})["count"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return Built(tmp_path_factory.mktemp("damaged"), tuple(FAULTS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Built(tmp_path_factory.mktemp("whole"), ())


def test_the_configuration_knows_every_fault():
    assert get_args(Fault) == tuple(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_reported_under_its_word(damaged, whole, name):
    fault = FAULTS[name]
    assert damaged.count(fault) > whole.count(fault), fault
    if fault.where in damaged.reports:
        assert damaged.reports[fault.where][fault.kind][fault.reason]["examples"]


def test_a_whole_world_loses_nothing(whole):
    assert all(manifest["rejected"] == {} for manifest in whole.manifests.values())
    assert all(report["dropped"] == {} for report in whole.reports.values())
    assert all(report["rows"] == report["kept"] > 0 for report in whole.reports.values())


def test_every_row_of_a_damaged_world_is_accounted_for(damaged, whole):
    for report in damaged.reports.values():
        lost = sum(entry["count"] for entry in report["dropped"].values())
        assert report["rows"] == report["kept"] + lost and report["kept"] > 0
    rows = {name: report["rows"] for name, report in damaged.reports.items()}
    more = {"aokvqa": 1, "otter_mimicit_cgd": 1}  # a doubled row each
    assert rows == {name: report["rows"] + more.get(name, 0) for name, report in whole.reports.items()}


def test_what_can_be_read_of_a_damaged_world_are_its_original_bytes(damaged):
    store = MediaStore(damaged.media)
    place = next((damaged.data / "coco/train2017").iterdir())
    row = store.lookup("coco", f"coco/train2017/{place.stem}")
    assert row is None or store.read("coco", row.key) == place.read_bytes()


def test_a_world_is_damaged_the_same_way_each_time(tmp_path):
    settings = MiniatureConfig(images=60, rows=ROWS, faults=tuple(FAULTS))
    manifests = [
        read_json(make_synthetic_data(tmp_path / name, **settings.model_dump()) / "miniature.json") for name in "ab"
    ]
    assert manifests[0] == manifests[1]


def test_beyond_the_tolerance_the_build_stops_with_the_reason(damaged, tmp_path):
    raw = {source: damaged.data.parents[1] / "raw" / source for source in SOURCES}
    write_shard("coco", raw["coco"], 1, 0, tmp_path / "media")
    with pytest.raises(UserError, match=r"images cannot be read, more than the share of 0.05 .*tolerance.images"):
        write_index("coco", 1, raw["coco"], tmp_path / "media", 0.05)
    assert not (tmp_path / "media/manifest.json").exists()
    mine = {source: raw[source] for source in REGISTRY.sources_of("llava_dial")}
    with pytest.raises(UserError, match=r"rows cannot be used, more than the share of 0.01 .*tolerance.rows"):
        convert("llava_dial", mine, {"coco": damaged.media["coco"]}, tmp_path / "records", 0.01)
    assert not list((tmp_path / "records").iterdir())
