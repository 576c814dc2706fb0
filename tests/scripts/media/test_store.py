"""The media store finds every image and returns its original bytes."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.common.errors import UserError
from scripts.common.files import write_table
from scripts.media.store import INDEX, INDEX_SCHEMA, MediaStore
from tests.synthetic_data import build_media, make_synthetic_data


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    data_path = make_synthetic_data(folder, images=25)
    return data_path, build_media(data_path, folder, shards=3)


def test_every_image_is_read_as_it_was(built):
    data_path, media = built
    store = MediaStore(media)
    for path in sorted((data_path / "coco/train2017").iterdir()):
        key = f"coco/train2017/{path.stem}"
        row = store.lookup("coco", key)
        assert (row.key, row.path, row.width, row.height) == (key, f"{key}.jpg", 64, 64)
        assert store.read("coco", key) == path.read_bytes()
        shard = store.shard("coco", row)
        assert shard.read_bytes()[row.offset : row.offset + row.length] == path.read_bytes()
        assert store.read_row("coco", row) == path.read_bytes()
        assert shard.parent == media["coco"] and shard.name == f"coco-{row.shard:05d}-of-00003.tar"
    opened = list(store._open.values())
    store.close()
    assert len(opened) == 3
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_many_images_are_looked_up_at_once(built):
    data_path, media = built
    keys = [f"coco/train2017/{path.stem}" for path in (data_path / "coco/train2017").iterdir()]
    store = MediaStore(media)
    wanted = [("coco", key) for key in [*keys[:9], keys[0], "coco/train2017/nothing"]]
    assert store.lookup_all(wanted) == {("coco", key): store.lookup("coco", key) for key in keys[:9]}
    assert store.lookup_all([]) == {}
    with pytest.raises(UserError, match="sparkles"):
        store.lookup_all([("sparkles", "x")])


def test_every_key_of_an_index_is_found_and_no_other(tmp_path):
    """The last of two images of the same key counts, for one and for many."""
    keys = ["a", "b", "b", "d", "d/e", "z"]
    empty = {pa.string(): "", pa.list_(pa.string()): []}
    blank = {field.name: empty.get(field.type, 0) for field in INDEX_SCHEMA}
    rows = [blank | {"key": key, "offset": number} for number, key in enumerate(keys)]
    write_table(tmp_path / INDEX, pa.Table.from_pylist(rows, INDEX_SCHEMA))
    store = MediaStore({"s": tmp_path})
    expected = {"a": 0, "b": 2, "d": 3, "d/e": 4, "z": 5}
    for key in ["", "A", "a", "aa", "b", "c", "d", "d/", "d/e", "e", "z", "zz"]:
        row = store.lookup("s", key)
        assert (row and row.offset) == expected.get(key)
        assert store.lookup_all([("s", key)]) == ({("s", key): row} if row else {})


def test_a_folder_without_an_index_is_named(tmp_path):
    for look in (lambda store: store.lookup("s", "a"), lambda store: store.lookup_all([("s", "a")])):
        with pytest.raises(UserError, match=r"index\.parquet is missing"):
            look(MediaStore({"s": tmp_path}))


def test_unknown_images_and_sources(built):
    store = MediaStore(built[1])
    assert store.lookup("coco", "coco/train2017/nothing") is None
    with pytest.raises(KeyError):
        store.read("coco", "coco/train2017/nothing")
    with pytest.raises(UserError, match="sparkles"):
        store.lookup("sparkles", "x")


def test_a_missing_or_short_shard_is_named(tmp_path):
    media = build_media(make_synthetic_data(tmp_path, images=4), tmp_path, shards=1)
    shard = media["coco"] / "coco-00000-of-00001.tar"
    key = pq.read_table(media["coco"] / INDEX)["key"][-1].as_py()
    store = MediaStore(media)
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"tar is damaged: the image .* does not have its sha256.*scripts\.verify"):
        store.read("coco", key)
    shard.unlink()
    with pytest.raises(UserError, match=r"tar is missing.*scripts\.verify"):
        MediaStore(media).read("coco", key)
