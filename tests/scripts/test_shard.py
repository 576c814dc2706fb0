"""shard and index: every readable image once, every other one with its reason, the same bytes every time."""

import io
import subprocess
import sys
import tarfile

import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json
from scripts.config.registry import SOURCES
from scripts.fetch import fetch
from scripts.media.store import MediaStore
from scripts.media.tarshard import ShardWriter, read_index
from scripts.media_index import write_index
from scripts.shard import write_shard
from tests.synthetic_data import build_media, make_synthetic_data


def _files(folder):
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _build(data, folder, shards=2):
    return build_media(data, folder, shards)["coco"]


@pytest.fixture
def world(tmp_path):
    return make_synthetic_data(tmp_path / "world", images=12)


def test_two_builds_give_the_same_bytes(world, tmp_path):
    one, two = _build(world, tmp_path / "one"), _build(world, tmp_path / "two")
    assert _files(one) == _files(two) and len(_files(one)) == 9
    manifest = read_json(one / "manifest.json")
    assert all(shard["sha256"] == file_sha256(one / shard["name"]) for shard in manifest["shards"])
    assert sum(shard["images"] for shard in manifest["shards"]) == manifest["images"] == 12


def test_shards_hold_the_original_bytes_sorted_by_key(world, tmp_path):
    media = _build(world, tmp_path, shards=3)
    shards = sorted(media.glob("*.tar"))
    assert [shard.name for shard in shards] == [f"coco-0000{i}-of-00003.tar" for i in range(3)]
    samples = [sample for shard in shards for sample in webdataset.WebDataset(str(shard), shardshuffle=False)]
    originals = {f"coco/train2017/{p.stem}": p.read_bytes() for p in (world / "coco/train2017").iterdir()}
    assert [sample["__key__"] for sample in samples] == sorted(originals)
    assert all(sample["jpg"] == originals[sample["__key__"]] for sample in samples)
    for shard in shards:
        with tarfile.open(shard) as tar:
            assert [member.offset for member in tar.getmembers()] == read_index(shard)[:-1]


def test_every_fault_ends_in_its_reason(world, tmp_path):
    folder = world / "coco/train2017"
    good = min(folder.iterdir()).read_bytes()
    tiny = io.BytesIO()
    Image.new("RGB", (1, 1)).save(tiny, "PNG")
    gif = io.BytesIO()
    Image.new("P", (9, 9)).save(gif, "GIF")
    faults = {"t.jpg": good[: len(good) // 2], "z.jpg": b"", "w.jpg": b"words, only words", "p.png": tiny.getvalue()}
    for name, data in faults.items() | {"g.jpg": gif.getvalue(), "notes.txt": b"no image"}.items():
        (folder / name).write_bytes(data)
    (folder / ".hidden.jpg").write_bytes(good)
    media = _build(world, tmp_path)
    rejected = {row["path"]: row["reason"] for row in pq.read_table(media / "rejected.parquet").to_pylist()}
    base = "coco/train2017/"
    expected = {"t.jpg": "truncated", "z.jpg": "zero_bytes", "w.jpg": "not_an_image", "p.png": "one_pixel"}
    assert rejected == {base + name: reason for name, reason in expected.items()}
    manifest = read_json(media / "manifest.json")
    assert manifest["images"] == 13 and manifest["rejected"] == dict.fromkeys(expected.values(), 1)
    store = MediaStore({"coco": media})
    odd = store.lookup("coco", base + "g")
    assert (odd.format, odd.flags) == ("gif", ["palette", "extension"])
    assert store.read("coco", base + "g") == gif.getvalue()


def test_more_shards_than_images(tmp_path):
    media = _build(make_synthetic_data(tmp_path / "world", images=2), tmp_path, shards=5)
    manifest = read_json(media / "manifest.json")
    assert len(manifest["shards"]) == 5 and manifest["images"] == 2
    for shard in manifest["shards"]:
        with tarfile.open(media / shard["name"]) as archive:
            assert len(archive.getmembers()) == shard["images"]


def test_a_file_that_changed_after_fetch_is_an_error(world, tmp_path):
    fetch(SOURCES["coco"], world, tmp_path / "raw")
    image = min((world / "coco/train2017").iterdir())
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(UserError, match="has changed since it was fetched"):
        write_shard("coco", tmp_path / "raw", 1, 0, tmp_path / "media")
    image.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        write_shard("coco", tmp_path / "raw", 1, 0, tmp_path / "media")
    assert not list((tmp_path / "media").glob("*.tar"))


def test_nothing_readable_is_an_error(tmp_path):
    folder = tmp_path / "data/coco/train2017"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="zero_bytes"):
        _build(tmp_path / "data", tmp_path)


def test_index_names_what_is_missing_or_does_not_belong(world, tmp_path):
    media = _build(world, tmp_path)
    with pytest.raises(UserError, match="coco-00000-of-00003"):
        write_index("coco", 3, tmp_path / "raw/coco", media)
    last = media / "coco-00001-of-00002.tar"
    last.unlink()
    with pytest.raises(UserError, match=r"coco-00001-of-00002.tar is missing"):
        write_index("coco", 2, tmp_path / "raw/coco", media)
    with ShardWriter(last):
        pass
    with pytest.raises(UserError, match=r"coco-00001-of-00002.tar is not the shard"):
        write_index("coco", 2, tmp_path / "raw/coco", media)


def test_the_programs_run_by_hand(world, tmp_path):
    fetch(SOURCES["coco"], world, tmp_path / "raw")
    common = ["--source", "coco", "--shards", "1", "--out", str(tmp_path / "media")]
    run = [sys.executable, "-m"]
    shard = [*run, "scripts.shard", *common, "--raw", str(tmp_path / "raw"), "--index"]
    assert subprocess.run([*shard, "0"], check=False).returncode == 0
    assert (
        subprocess.run([*run, "scripts.media_index", *common, "--raw", str(tmp_path / "raw")], check=False).returncode
        == 0
    )
    bad = subprocess.run([*shard, "1"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and "--index 1" in bad.stderr


def test_the_programs_from_raw_files_to_shards_start_without_pandas(world, tmp_path):
    """It takes longer to import than all else that they do before the first image, and pyarrow would import it."""
    raw, media = ["--raw", str(tmp_path / "raw")], ["--out", str(tmp_path / "media"), "--shards", "1"]
    steps = {
        "fetch": ["--data-path", str(world), "--require", "coco/train2017/", "--out", str(tmp_path / "raw")],
        "shard": [*raw, *media, "--index", "0"],
        "media_index": [*raw, *media],
    }
    for name, arguments in steps.items():
        command = [sys.executable, "-X", "importtime", "-m", f"scripts.{name}", "--source", "coco", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        imported = {
            line.rsplit("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
        }
        assert "pyarrow" in imported and "pandas.core" not in imported  # a refused import leaves a line too
