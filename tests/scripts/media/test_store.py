"""The media store finds every image and returns its original bytes."""

import os

import pyarrow.parquet as pq
import pytest

from scripts.common.errors import UserError
from scripts.media.store import INDEX, MediaStore
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
        shard, offset, length = store.reference("coco", key)
        assert shard.read_bytes()[offset : offset + length] == path.read_bytes()
        assert shard.parent == media["coco"] and shard.name == f"coco-{row.shard:05d}-of-00003.tar"
    opened = list(store._open.values())
    store.close()
    assert len(opened) == 3
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


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
