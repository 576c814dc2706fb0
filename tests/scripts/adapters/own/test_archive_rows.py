"""Rows in archives: samples of WebDataset tars, files of rows in tars and zips, and what damage costs."""

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from scripts.adapters.own import archive_rows
from scripts.adapters.own.row_readers import read_rows
from scripts.common.errors import UserError
from scripts.common.files import file_sha256

LINES = b'{"a": 1}\n{"a": 2}\n'


def make_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def rows_of(path, notes=None):
    return list(read_rows(path, path.name, [] if notes is None else notes, file_sha256(path)))


def test_samples_as_webdataset_writes_them(tmp_path):
    path = tmp_path / "shard-000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "a/1", "jpg": b"\xff\xd8", "json": {"question": "What?", "n": 1}})
        writer.write({"__key__": "a/2", "png": b"\x89PNG", "txt": "Größe", "left.png": b"1"})
        writer.write({"__key__": "b", "json": ["x"], "cls": 7})
        writer.write({"__key__": "c", "json": [{"role": "user", "content": "x"}]})
    assert [(row.id, row.file, row.value) for row in rows_of(path)] == [
        ("0", "shard-000.tar", {"__key__": "a/1", "jpg": b"\xff\xd8", "question": "What?", "n": 1}),
        ("1", "shard-000.tar", {"__key__": "a/2", "png": b"\x89PNG", "txt": "Größe", "left.png": b"1"}),
        ("2", "shard-000.tar", {"__key__": "b", "json": ["x"], "cls": "7"}),
        ("3", "shard-000.tar", {"__key__": "c", "json": [{"role": "user", "content": "x"}]}),
    ]
    packed = tmp_path / "shard-000.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [row.value for row in rows_of(packed)] == [row.value for row in rows_of(path)]


def test_faults_of_samples_cost_the_sample(tmp_path):
    files = [
        ("./1.txt", b"one"),
        ("2.json", b"{"),
        ("3.txt", b"\xff"),
        ("4.json", b'{"q": 1, "q": 2}'),
        ("1.jpg", b""),
        ("5.json", b'{"txt": "a"}'),
        ("5.txt", b"b"),
        ("._6.txt", b"hidden"),
        ("7.json", b'{"a": 1}'),
        ("7.jpg", b""),
        ("7.JPG", b""),
    ]
    notes = []
    one, broken, invalid, four, apart, twice, repeated = (
        row.value for row in rows_of(make_tar(tmp_path / "x.tar", files), notes)
    )
    assert one == {"__key__": "1", "txt": "one"} and four == {"__key__": "4", "q": 2}
    assert invalid["txt"] == "\udcff"
    reasons = [row.reason for row in (broken, apart, twice, repeated)]
    assert reasons == ["invalid_json", "split_sample", "duplicate_member", "duplicate_member"]
    assert [note.example for note in notes] == ["x.tar 4.json: 'q' occurs twice in one object"]


def test_a_sample_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_rows, "MAX_SAMPLE", 10)
    files = [("1.txt", b"x" * 11), ("2.txt", b"x" * 10), ("3.txt", b"x" * 6), ("3.jpg", b"x" * 5)]
    path = make_tar(tmp_path / "x.tar", files)
    assert [getattr(row.value, "reason", "") for row in rows_of(path)] == ["too_large", "", "too_large"]


def test_samples_of_a_tar_are_not_kept(tmp_path):
    path = make_tar(tmp_path / "x.tar", [(f"{number}.txt", b"x") for number in range(3000)])
    tracemalloc.start()
    try:
        rows = read_rows(path, path.name, [])
        next(rows)
        before = tracemalloc.get_traced_memory()[0]
        assert sum(1 for _ in islice(rows, 2900)) == 2900
        assert tracemalloc.get_traced_memory()[0] - before < 300_000
    finally:
        tracemalloc.stop()


def test_files_of_rows_in_archives_are_read_where_they_are(tmp_path):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2]}), buffer)
    files = [
        ("d/lines.jsonl", LINES),
        ("d/list.json", b' [{"a": 1}, {"a": 2}]'),
        ("lines.jsonl.gz", gzip.compress(LINES)),
        ("t.parquet", buffer.getvalue()),
        ("u.csv", b"a\n1\n2\n"),
        ("photo.jpg", b"\xff\xd8"),
        ("__MACOSX/d/._lines.jsonl", b"\0"),
        (".hidden/x.jsonl", b"\0"),
    ]
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    for path in (make_tar(tmp_path / "x.tar", [each for each in files if each[0] != "photo.jpg"]), tmp_path / "x.zip"):
        found = {}
        for row in rows_of(path):
            found.setdefault(row.file, []).append((row.id, int(row.value["a"])))
        names = ["d/lines.jsonl", "d/list.json", "lines.jsonl.gz", "t.parquet", "u.csv"]
        assert found == {f"{path.name}/{name}": [("0", 1), ("1", 2)] for name in names}


def test_cut_joined_and_empty_tars_are_refused(tmp_path):
    whole = make_tar(tmp_path / "x.tar", [("1.txt", b"one"), ("2.txt", b"two")]).read_bytes()
    for end in (700, 1100, 1536, 2048):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"cut\.tar is damaged or cut off"):
            rows_of(tmp_path / "cut.tar")
    (tmp_path / "two.tar").write_bytes(whole * 2)
    with pytest.raises(UserError, match=r"two\.tar goes on behind its end"):
        rows_of(tmp_path / "two.tar")
    with pytest.raises(UserError, match=r"none\.tar has no rows"):
        rows_of(make_tar(tmp_path / "none.tar", []))
    (tmp_path / "bad.tar.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(UserError, match=r"bad\.tar\.gz is damaged or cut off"):
        rows_of(tmp_path / "bad.tar.gz")


def test_damaged_empty_and_encrypted_zips_are_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", LINES * 50)
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + b"\xff\xff\xff" + whole[63:])
    with pytest.raises(UserError, match=r"x\.zip.* is damaged or cut off"):
        rows_of(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"x\.zip is damaged or cut off"):
        rows_of(path)
    encrypted = bytearray(whole)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.find(mark) + flags] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(UserError, match=r"x\.zip is encrypted: unpack it"):
        rows_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"")
    with pytest.raises(UserError, match=r"x\.zip has no rows: the archive holds no files of rows"):
        rows_of(path)


def test_a_table_in_an_archive_has_a_largest_size(tmp_path, monkeypatch):
    pq.write_table(pa.table({"question": ["Why?"] * 100}), tmp_path / "rows.parquet")
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as file:
        file.write(tmp_path / "rows.parquet", "rows.parquet")
    assert len(list(read_rows(tmp_path / "rows.zip", "rows.zip", []))) == 100
    monkeypatch.setattr("scripts.adapters.own.row_readers.LARGEST_TABLE", 100)
    with pytest.raises(UserError, match="unpack the archive"):
        list(read_rows(tmp_path / "rows.zip", "rows.zip", []))
