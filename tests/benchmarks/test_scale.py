"""The synthetic data path has the layout that fetch looks for, and the counts of the published files."""

from benchmarks import listing
from benchmarks.scale import COCO_IMAGES, recipe, write_data_path
from scripts.config import settings
from scripts.config.registry import SOURCES
from scripts.fetch import fetch
from scripts.media.listing import share

FRACTION = 0.0003


def test_every_source_is_there_with_its_counts(tmp_path):
    write_data_path(tmp_path / "data", FRACTION)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    write_data_path(tmp_path / "data", FRACTION)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before
    images = {name: fetch(source, tmp_path / "data", tmp_path / name)["images"] for name, source in SOURCES.items()}
    assert images["coco"] == round(COCO_IMAGES * FRACTION)
    assert (images["mimicit_tvc"], images["ocr_vqa"], images["cc_sbu_align"]) == (171, 62, 6)


def test_its_recipe_reads_all_thirteen_datasets():
    loaded = settings.load(recipe(FRACTION))
    assert len(loaded.datasets()) == 12 and "llava_otter_blend" in loaded.blends["all"].datasets


def test_listed_images_are_those_that_the_jobs_read(tmp_path):
    listing.list_images(tmp_path, 8000, 5)
    rows = [row for index in range(5) for row in share(tmp_path, 5, index)]
    assert [key for key, _ in rows] == [f"images/train/{number:012d}" for number in range(8000)]
    listing.read_part(tmp_path, 8000, 5)
    listing.read_all(tmp_path, 8000, 5)
