"""Shards: the same bytes every time, readable by everyone, each sample found by its offset."""

import os
import tarfile

import pytest
import webdataset

from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.media.tarshard import ShardWriter, index_path, read_index, shard_name

SAMPLES = {
    "coco/train2017/000000000001": [("jpg", b"one"), ("json", b"{}")],
    "a": [("json", b""), ("i0.jpg", b"x" * 512), ("i1.png", bytes(range(256)) * 5)],
    "k" * 90: [("jpeg", b"z" * 10_000)],
}


def _write(path):
    with ShardWriter(path) as writer:
        offsets = {key: writer.add(key, members) for key, members in SAMPLES.items()}
    return writer, offsets


def test_two_builds_give_the_same_bytes(tmp_path, monkeypatch):
    one, _ = _write(tmp_path / "one.tar")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    os.umask(os.umask(0o077))
    two, _ = _write(tmp_path / "sub" / "two.tar")
    assert one.sha256 == two.sha256 == file_sha256(tmp_path / "one.tar") == file_sha256(tmp_path / "sub" / "two.tar")
    assert one.bytes == (tmp_path / "one.tar").stat().st_size and one.samples == len(SAMPLES)
    assert index_path(tmp_path / "one.tar").read_bytes() == index_path(tmp_path / "sub" / "two.tar").read_bytes()


def test_tarfile_reads_it_and_finds_nothing_of_the_machine(tmp_path):
    _write(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as tar:
        members = tar.getmembers()
        contents = {member.name: tar.extractfile(member).read() for member in members}
    assert contents == {f"{key}.{ext}": data for key, members in SAMPLES.items() for ext, data in members}
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o444)}
    assert (tmp_path / "x.tar").stat().st_size % 10240 == 0


def test_headers_are_those_that_tar_itself_would_write(tmp_path):
    _write(tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        for member in tar.getmembers():
            own = tarfile.TarInfo(member.name)
            own.size, own.mode = member.size, 0o444
            theirs = own.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
            # The numbers of devices, which a regular file has none of, are left empty by some versions and zero in
            # others.
            ours = data[member.offset : member.offset + 512]
            assert ours[:148] + ours[156:329] == theirs[:148] + theirs[156:329] and ours[345:] == theirs[345:]


def test_webdataset_reads_it(tmp_path):
    _write(tmp_path / "x.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(SAMPLES)
    for sample in samples:
        assert [(ext, sample[ext]) for ext, _ in SAMPLES[sample["__key__"]]] == SAMPLES[sample["__key__"]]


def test_offsets_lead_to_samples_and_data(tmp_path):
    _, offsets = _write(tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    starts = read_index(tmp_path / "x.tar")
    assert len(starts) == len(SAMPLES) + 1 and starts[0] == 0
    for (key, members), start in zip(SAMPLES.items(), starts[:-1], strict=True):
        assert data[start:].startswith(f"{key}.{members[0][0]}".encode())
        for (_, content), offset in zip(members, offsets[key], strict=True):
            assert data[offset : offset + len(content)] == content
    assert starts[-1] == offset + -(-len(content) // 512) * 512, "right behind the last sample"
    assert data[starts[-1] :] == bytes(len(data) - starts[-1]) and len(data) - starts[-1] >= 1024


def test_an_empty_shard_is_an_archive(tmp_path):
    with ShardWriter(tmp_path / "x.tar"):
        pass
    assert read_index(tmp_path / "x.tar") == [0]
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert archive.getmembers() == []


def test_a_failure_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with ShardWriter(tmp_path / "x.tar") as writer:
            writer.add("a", [("jpg", b"1")])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a.b", "k" * 98])
def test_keys_that_readers_misread_are_refused(tmp_path, key):
    message = r"key must not be empty|longer than 100 bytes"
    with ShardWriter(tmp_path / "x.tar") as writer, pytest.raises(ValueError, match=message):
        writer.add(key, [("jpg", b"1")])


def test_a_missing_or_damaged_index_is_named(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        read_index(tmp_path / "x.tar")
    index_path(tmp_path / "x.tar").write_bytes(b"12345")
    with pytest.raises(UserError, match="damaged"):
        read_index(tmp_path / "x.tar")


def test_names():
    assert shard_name("coco", 3, 16) == "coco-00003-of-00016.tar"
