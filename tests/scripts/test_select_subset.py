"""select_subset selects a few images by hash, from the annotations, before any image exists."""

import pytest

from scripts.adapters.conversion import Conversion
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.config.registry import SOURCES
from scripts.config.subset import SubsetConfig
from scripts.fetch import fetch
from scripts.select_subset import select_images
from tests.synthetic_data import fetch_all, make_synthetic_data

DATASETS = ["llava", "aokvqa", "otter_mimicit_cgd"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_synthetic_data(tmp_path_factory.mktemp("world"), images=80)


@pytest.fixture(scope="module")
def raw(world, tmp_path_factory):
    """Annotations alone."""
    folder = tmp_path_factory.mktemp("raw")
    return RawFiles(fetch_all(world, folder, ("llava", "aokvqa", "mimicit_cgd")))


def test_as_many_images_as_asked_for_and_every_dataset_brings_some(raw):
    chosen = select_images(DATASETS, raw, ["coco"], SubsetConfig(images=20))
    assert len(chosen["images"]["coco"]) in (20, 21)
    assert all(count >= 3 for count in chosen["conversations"].values())


def test_the_choice_depends_on_the_seed_alone(raw):
    one, same, other = (
        select_images(DATASETS, raw, ["coco"], SubsetConfig(images=20, seed=seed)) for seed in (0, 0, 1)
    )
    assert one == same != other
    more = set(select_images(DATASETS, raw, ["coco"], SubsetConfig(images=30))["images"]["coco"])
    assert set(one["images"]["coco"]) <= more


def test_what_shows_other_images_is_left_out_as_such_and_all_else_is_used(world, raw, tmp_path):
    subset = select_images(DATASETS, raw, ["coco"], SubsetConfig(images=20))["images"]
    fetch(SOURCES["coco"], world, tmp_path / "coco", subset=frozenset(subset["coco"]))
    folders = raw.folders | {"coco": tmp_path / "coco"}
    for dataset in DATASETS:
        conversion = Conversion(
            dataset, RawFiles(folders), ImageLookup.from_listing(RawFiles(folders), ["coco"], subset)
        )
        records = list(conversion)
        assert {image.key for record in records for image in record.images} <= set(subset["coco"]) and records
        assert set(conversion.dropped.as_dict()) == {"outside_subset"}
    pairs = [record for record in records if len(record.images) == 2]
    assert pairs, "a pair is chosen with both its images"


def test_without_any_image_to_choose_it_says_so(raw):
    with pytest.raises(UserError, match="none of llava shows an image of ocr_vqa"):
        select_images(["llava"], raw, ["ocr_vqa"], SubsetConfig())
