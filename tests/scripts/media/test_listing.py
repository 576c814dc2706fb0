"""Images are listed once; every shard reads its part of the list, and the parts are those of the plain rule."""

import random

import pyarrow as pa
import pytest

from scripts.common.errors import UserError
from scripts.common.files import write_table
from scripts.media import listing
from scripts.media.containers import DEFLATED, FILE, ImageEntry
from scripts.media.keys import keys_of
from scripts.media.listing import (
    FILES_SCHEMA,
    FILES_TABLE,
    IMAGES_SCHEMA,
    IMAGES_TABLE,
    entries_table,
    image_listing,
    listed_files,
    separate_images,
    share,
)


def write_images(folder, entries):
    write_table(folder / IMAGES_TABLE, image_listing(entries_table(entries)))


def rows(*sizes):
    return [ImageEntry(str(number), "", FILE, 0, size) for number, size in enumerate(sizes)]


def plain_share(entries, shards, index):
    """All images, keyed and sorted; those that begin in part `index` of the concatenated bytes."""
    keys = keys_of(pa.array([entry.path for entry in entries], pa.string())).to_pylist()
    total, selected, offset = max(1, sum(entry.length for entry in entries)), [], 0
    for key, entry in sorted(zip(keys, entries, strict=True)):
        if min(offset * shards // total, shards - 1) == index:
            selected.append((key, entry))
        offset += entry.length
    return selected


def test_an_image_goes_where_its_first_byte_falls(tmp_path):
    write_images(tmp_path, rows(10, 10, 0, 60, 10, 10))
    parts = [[key for key, _ in share(tmp_path, 4, index)] for index in range(4)]
    assert parts == [["0", "1", "2", "3"], [], [], ["4", "5"]]
    write_images(tmp_path, rows(0, 0))
    assert [len(share(tmp_path, 2, index)) for index in range(2)] == [2, 0]
    write_images(tmp_path, [])
    assert share(tmp_path, 1, 0) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_list_is_divided_as_by_the_plain_rule(tmp_path, seed, monkeypatch):
    """Among the entries are equal paths, odd names, files without bytes, and rows of several batches."""
    draw = random.Random(seed)
    monkeypatch.setattr(listing, "_AT_ONCE", 7)
    entries = [
        ImageEntry(
            f"d/{draw.choice(['a', 'B', 'b', 'é', 'x.y'])}{draw.randrange(20)}{draw.choice(['.jpg', '.png', ''])}",
            draw.choice(["x.zip", "y.zip"]),
            DEFLATED,
            draw.randrange(3),
            draw.choice([0, 0, 1, 5, 100]),
            draw.randrange(2),
            draw.choice(["", "duplicate_name"]),
        )
        for _ in range(draw.randrange(60))
    ]
    write_images(tmp_path, entries)
    for shards in (1, 2, 3, 7, 50):
        parts = [share(tmp_path, shards, index) for index in range(shards)]
        assert parts == [plain_share(entries, shards, index) for index in range(shards)]
        assert sum(map(len, parts)) == len(entries)


def test_the_list_is_sorted_and_counts_the_bytes_before_each_image():
    table = image_listing(entries_table([*rows(3, 4), ImageEntry("0", "a.zip", DEFLATED, 9, 5)]))
    assert table.schema.equals(IMAGES_SCHEMA)
    assert table.select(["key", "container", "start"]).to_pylist() == [
        {"key": "0", "container": "", "start": 0},
        {"key": "0", "container": "a.zip", "start": 3},
        {"key": "1", "container": "", "start": 8},
    ]


def test_images_that_are_files_are_listed_from_the_table_of_files():
    files = pa.Table.from_pylist([{"path": "d/a.jpg", "bytes": 5, "sha256": "00"}], FILES_SCHEMA)
    assert separate_images(files).equals(entries_table([ImageEntry("d/a.jpg", "", FILE, 0, 5)]))
    assert separate_images(files.slice(1)).num_rows == 0


def test_files_are_found_by_their_paths(tmp_path):
    table = pa.Table.from_pylist([{"path": f"d/{n}", "bytes": n, "sha256": ""} for n in range(9)], FILES_SCHEMA)
    write_table(tmp_path / FILES_TABLE, table)
    assert listed_files(tmp_path, ["d/3", "d/7", "e"]) == {"d/3": ("d/3", 3, ""), "d/7": ("d/7", 7, "")}


def test_a_list_of_an_earlier_version_or_none_is_named(tmp_path):
    with pytest.raises(UserError, match=r"images\.parquet does not exist: fetch first"):
        share(tmp_path, 1, 0)
    write_table(tmp_path / IMAGES_TABLE, entries_table(rows(1)))
    with pytest.raises(UserError, match=r"images\.parquet is damaged or of an earlier version: fetch again"):
        share(tmp_path, 1, 0)
