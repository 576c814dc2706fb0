"""Reading a blend: every unit as it was written, embedded or referenced, and everything missing found at once."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import webdataset

from scripts.common.errors import UserError
from scripts.inference import blend_reader
from scripts.inference.blend_reader import BlendReader
from tests.blends import write_blend
from tests.runs import TrainingSetup


@pytest.fixture
def referenced(lab: TrainingSetup, tmp_path: Path) -> Path:
    return write_blend(tmp_path / "blend", 9, lab.bases["tokenizer"], images="referenced", root=tmp_path)


def test_units_are_those_that_webdataset_reads(lab: TrainingSetup):
    reader = BlendReader(lab.blends[0], lab.root)
    urls = [str(path) for path in sorted(lab.blends[0].glob("*.tar"))]
    expected = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(reader) == len(expected) == 50
    for unit, sample in enumerate(expected):
        found = reader[unit]
        member = json.loads(sample["json"])
        assert (found.uids, found.messages, found.position) == (member["uids"], member["messages"], unit)
        for name in ("n_tokens", "n_labels", "dataset"):
            assert getattr(found, name) == member[name]
        assert found.images == [sample[f"i{index}.jpg"] for index in range(len(member["images"]))]
        assert reader.uids(unit) == found.uids
    with pytest.raises(IndexError):
        reader[50]


@pytest.mark.parametrize("head", [512, 1024, 8192])
def test_without_images_only_the_images_are_missing(lab: TrainingSetup, referenced: Path, monkeypatch, head: int):
    """Whether the first piece that is read holds all of the JSON member, some of it or its header alone."""
    monkeypatch.setattr(blend_reader, "_HEAD", head)
    for reader in (BlendReader(lab.blends[0], lab.root), BlendReader(referenced, referenced.parent)):
        for position in range(9):
            assert reader.read(position, images=False) == dataclasses.replace(reader[position], images=[])


def test_embedded_and_referenced_images_are_equal(lab: TrainingSetup, referenced: Path):
    embedded = write_blend(referenced.parent / "embedded", 9, lab.bases["tokenizer"])
    one, two = BlendReader(embedded, referenced.parent), BlendReader(referenced, referenced.parent)
    assert [one[unit] for unit in range(9)] == [two[unit] for unit in range(9)]
    assert sum(len(one[unit].images) for unit in range(9)) > 3


def test_an_empty_blend_has_no_units(lab: TrainingSetup, tmp_path: Path):
    assert len(BlendReader(write_blend(tmp_path, 0, lab.bases["tokenizer"], stem="heldout", shards=1), tmp_path)) == 0


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-00001-of-00002.tar", None, "is missing"),
        ("train-00000-of-00002.tar.idx", None, "is missing"),
        ("train-00001-of-00002.tar", lambda data: data[:-512], "instead of"),
        ("train-00000-of-00002.tar.idx", lambda data: data[:-8], "instead of"),
        ("units.idx", None, "is missing"),
        ("units.idx", lambda data: data + data[-8:], "instead of"),
        ("counts.npy", None, "is missing"),
        ("manifest.json", None, "does not exist"),
    ],
)
def test_missing_or_short_files_are_found_on_opening(lab: TrainingSetup, tmp_path: Path, name, change, message):
    folder = tmp_path / "blend"
    shutil.copytree(lab.blends[0], folder)
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if change:
        (folder / name).write_bytes(change(data))
    with pytest.raises(UserError, match=message) as error:
        BlendReader(folder, tmp_path)
    assert str(folder / name) in str(error.value)


def test_a_missing_media_shard_is_found_on_opening(referenced: Path):
    shard = referenced.parent / "media/coco/coco-00000-of-00001.tar"
    listed = [{"name": shard.name, "bytes": shard.stat().st_size}]
    (shard.parent / "manifest.json").write_text(json.dumps({"shards": listed}))
    BlendReader(referenced, referenced.parent)
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"bytes instead of .*the blend's images lie there"):
        BlendReader(referenced, referenced.parent)
    shard.unlink()
    with pytest.raises(UserError, match=r"is missing \(the blend's images lie there\)"):
        BlendReader(referenced, referenced.parent)


def test_a_manifest_that_counts_others_than_its_shards_is_refused(lab: TrainingSetup, tmp_path: Path):
    folder = tmp_path / "blend"
    shutil.copytree(lab.blends[0], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"conversations": 49}))
    with pytest.raises(UserError, match="counts 49 conversations, its shards 50"):
        BlendReader(folder, tmp_path)


@pytest.mark.parametrize("place", [3, 130, 150, 300], ids=["name", "size", "checksum", "prefix"])
def test_a_flipped_bit_in_a_header_is_found(lab: TrainingSetup, tmp_path: Path, place: int):
    folder = tmp_path / "blend"
    shutil.copytree(lab.blends[0], folder)
    shard = folder / "train-00000-of-00002.tar"
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    for images in (True, False):
        with pytest.raises(UserError, match=r"\.tar is damaged at conversation 0: a header.*scripts\.verify --root"):
            BlendReader(folder, tmp_path).read(0, images)


def test_damage_and_escapes_are_clear_errors(lab: TrainingSetup, referenced: Path, tmp_path: Path):
    media = tmp_path / "media/coco/coco-00000-of-00001.tar"
    reader = BlendReader(referenced, tmp_path)
    unit = next(unit for unit in range(9) if reader[unit].images)
    media.write_bytes(b"short")
    with pytest.raises(UserError, match="ends before an image does"):
        reader[unit]
    media.unlink()
    with pytest.raises(UserError, match="is missing"):
        reader[unit]
    for path in ("../secret", "/etc/passwd"):
        with pytest.raises(UserError, match="outside the results root"):
            reader._referenced([path, 0, 1], "")
    shard = referenced / "train-00000-of-00002.tar"
    shard.write_bytes(b"\1" * shard.stat().st_size)
    with pytest.raises(UserError, match=r"is damaged at conversation 0"):
        reader[0]
