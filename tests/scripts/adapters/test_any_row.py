"""Whatever stands in a row of a raw file, it becomes a record or a reason: no adapter fails on data."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.adapters.base import Dropped
from scripts.adapters.conversion import load_adapter
from scripts.adapters.image_lookup import ImageLookup
from scripts.common.records import Record, check, to_batch
from scripts.config.registry import DATASETS, REGISTRY, SOURCES
from tests.scripts.adapters.raw_folders import fetch_for
from tests.synthetic_data import make_synthetic_data

ADAPTED = sorted(name for name, dataset in DATASETS.items() if dataset.adapter)
FILES = {file.path: file for source in SOURCES.values() for file in source.files}
ROWS = 5

NASTY = (
    "",
    " \n",
    "<image>",
    "<image>\n",
    "<|image:0|>",
    "\ud800",
    "\x00",
    "../../x",
    "/etc/passwd",
    "IMAGE#1 x",
    "a" * 5000,
)
HUGE = "an integer of 5,000 digits"
"""Stands for one until rows are written: Python does not write them."""
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NASTY)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    shares = {"minigpt4": 0.5, "ocr_vqa": 0.5, "sparkles": 1.0, "aokvqa": 1.0, "mimicit": 1.0}
    return make_synthetic_data(tmp_path_factory.mktemp("world"), images=15, rows=shares)


def _is_drawn(world, dataset):
    return all((world / path).exists() for path in DATASETS[dataset].files)


def _skip_unless_drawn(world, dataset):
    """The rows to change are the miniature's; a dataset that it does not draw needs broken rows in its own test."""
    if not _is_drawn(world, dataset):
        pytest.skip("the miniature does not draw this dataset")


def test_the_datasets_of_the_paper_are_drawn(world):
    """Otherwise their tests below would be skipped."""
    assert sum(_is_drawn(world, dataset) for dataset in ADAPTED) >= 12


def _few(path: str, value):
    """The file's JSON value cut to its first rows, and the rows themselves: a list, or an object."""
    rows = value if FILES[path].key is None else value[FILES[path].key]
    few = rows[:ROWS] if isinstance(rows, list) else dict(list(rows.items())[:ROWS])
    return (few if FILES[path].key is None else value | {FILES[path].key: few}), few


def _places(value, here=()):
    """The places of all members and items inside a row, by the keys that lead there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*here, key)
        yield from _places(item, (*here, key))


def _change(row, draw):
    """`row` with one thing changed: replaced, removed, doubled or added."""
    places = list(_places(row))
    if not places or draw(st.integers(0, 9)) == 0:
        return draw(values)
    row = copy.deepcopy(row)
    *way, last = draw(st.sampled_from(places))
    holder = row
    for key in way:
        holder = holder[key]
    change = draw(st.sampled_from(("replace", "replace", "remove", "again", "inside")))
    if change == "replace":
        holder[last] = draw(values)
    elif change == "remove":
        del holder[last]
    elif change == "again" and isinstance(holder, list):
        holder.insert(last, copy.deepcopy(holder[last]))
    elif isinstance(holder[last], str):
        at = draw(st.integers(0, len(holder[last])))
        holder[last] = holder[last][:at] + draw(st.sampled_from(NASTY)) + holder[last][at:]
    return row


def _run(dataset: str, world: Path, files: dict) -> list[Record]:
    """The records that the adapter of `dataset` makes of `files`; every row is accounted for and can be written."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "data"
        for path, value in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(json.dumps(value).replace(f'"{HUGE}"', "7" * 5000))
        for source in REGISTRY.image_sources(dataset):
            for images in SOURCES[source].images:
                there = [path for path in (images.folder.rstrip("/"), *images.containers) if (world / path).exists()]
                for path in there[:1]:
                    (place / path).parent.mkdir(parents=True, exist_ok=True)
                    (place / path).symlink_to(world / path)
        raw = fetch_for(dataset, place, Path(folder) / "raw")
        results = list(
            load_adapter(DATASETS[dataset]).records(raw, ImageLookup.from_listing(raw, REGISTRY.image_sources(dataset)))
        )
    records = [item for item in results if isinstance(item, Record)]
    dropped = [item for item in results if isinstance(item, Dropped)]
    for record in records:
        check(record)
    assert to_batch(((record.id, record) for record in records), "").num_rows == len(records)
    assert sum(record.raw_rows for record in records) + sum(item.rows for item in dropped) == raw.rows_read
    return records


def _replaced(row, place, value):
    row = copy.deepcopy(row)
    holder = row
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return row


@pytest.mark.parametrize("dataset", ADAPTED)
def test_every_member_of_a_row_may_be_anything(world, dataset):
    _skip_unless_drawn(world, dataset)
    files = {}
    for path in DATASETS[dataset].files:
        value, rows = _few(path, json.loads((world / path).read_text()))
        names = list(rows) if isinstance(rows, dict) else range(len(rows))
        good = rows[names[0]]
        changed = [
            _replaced(good, place, bad)
            for place in _places(good)
            for bad in (*NASTY, None, True, 7, 0.5, float("nan"), float("inf"), HUGE, [], {})
        ]
        assert len(changed) > 30
        if isinstance(rows, dict):
            rows.update({f"{names[0]}{number:06d}": row for number, row in enumerate(changed)})
        else:
            rows.extend(changed)
        files[path] = value
    assert _run(dataset, world, files)


@pytest.mark.parametrize("dataset", ADAPTED)
@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_row_is_a_record_or_a_reason(world, dataset, data):
    _skip_unless_drawn(world, dataset)
    files = {}
    changed = data.draw(st.sampled_from(DATASETS[dataset].files))
    for path in DATASETS[dataset].files:
        value, rows = _few(path, json.loads((world / path).read_text()))
        if path == changed:
            which = data.draw(st.sampled_from(list(rows) if isinstance(rows, dict) else range(len(rows))))
            rows[which] = _change(rows[which], data.draw)
        files[path] = value
    assert _run(dataset, world, files)
