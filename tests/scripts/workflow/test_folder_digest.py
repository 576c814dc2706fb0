"""The raw files of a user count by name, size and time, at the cost of one look at each."""

import hashlib
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from scripts.common.files import bytes_sha256, file_sha256, write_table
from scripts.fetching.receipts import mark_partial, write_receipt
from scripts.fetching.verification import Fetched
from scripts.workflow.folder_digest import base_digest, folder_digest, remember

PATTERNS = ("images/", "rows.json", "absent.json", "parts/*.parquet")


@pytest.fixture
def data(tmp_path):
    for name in ("images/deep/a.jpg", "images/b.jpg", "images/deep.jpg", "rows.json", "other.json", "parts/1.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    return tmp_path


def digest(folder):
    folder_digest.cache_clear()
    return folder_digest(str(folder), PATTERNS)


def test_name_size_and_time_of_every_file_count(data):
    expected = hashlib.sha256()
    for path in ("images/b.jpg", "images/deep.jpg", "images/deep/a.jpg", "rows.json", "parts/1.parquet"):
        expected.update(f"{path}\0{1}\0{(data / path).stat().st_mtime_ns}\n".encode())
    assert digest(data) == expected.hexdigest()[:16]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: os.utime(data / "images/deep/a.jpg", ns=(time.time_ns(), 1)),
        lambda data: (data / "images/deep/b.jpg").write_bytes(b"1"),
        lambda data: (data / "rows.json").write_bytes(b"12"),
        lambda data: (data / "images/b.jpg").rename(data / "images/c.jpg"),
        lambda data: (data / "images/deep/a.jpg").unlink(),
        lambda data: (data / "parts/2.parquet").write_bytes(b""),
        lambda data: (data / "absent.json").symlink_to("other.json"),
    ],
)
def test_every_change_is_noticed(data, change):
    before = digest(data)
    change(data)
    assert digest(data) != before


def test_what_is_no_file_or_of_no_pattern_does_not_count(data):
    before = digest(data)
    (data / "other.json").write_text("[1]")
    os.mkfifo(data / "images/pipe.jpg")
    (data / "images/dangling.jpg").symlink_to("nothing")
    (data / "images/loop").symlink_to("deep")
    (data / "parts/folder.parquet").mkdir()
    (data / "images/empty").mkdir()
    assert digest(data) == before


def test_a_name_that_is_not_utf8_counts(data):
    before = digest(data)
    Path(os.fsdecode(bytes(data / "images") + b"/\xff.jpg")).write_bytes(b"1")
    assert digest(data) != before


def test_downloaded_files_are_no_cause_until_they_are_edited(data):
    before = digest(data)
    (data / "images/got.jpg").write_bytes(b"data")
    write_receipt(data, "images/got.jpg", "http://x/got.jpg", Fetched(4, bytes_sha256(b"data")))
    assert digest(data) == before
    os.utime(data / "images/got.jpg", ns=(1, 1))
    assert digest(data) != before
    mark_partial(data, "images/")
    assert digest(data) != before


def test_every_folder_is_listed_once_every_file_looked_at_once_and_no_file_opened(data, monkeypatch):
    for number in range(50):
        (data / f"images/{number}.png").write_bytes(b"1")
    opened = []
    monkeypatch.setattr(Path, "read_bytes", opened.append)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(os.path.relpath(path, data)) or scandir(path))
    digest(data)
    assert opened == [] and listed.count("images") == listed.count("images/deep") == 1


def test_in_the_names_of_a_users_files_only_a_star_is_a_pattern(tmp_path):
    folder = tmp_path / "data [1] *"
    (folder / "a*b").mkdir(parents=True)
    for name in ("rows[1].json", "rows1.json", "a*b/part-1.parquet", "a*b/part-2.parquet", "w?.json"):
        (folder / name).write_text("[]")

    def counts(pattern, changed):
        folder_digest.cache_clear()
        before = folder_digest(str(folder), (pattern,))
        (folder / changed).write_text((folder / changed).read_text() + " ")
        folder_digest.cache_clear()
        return folder_digest(str(folder), (pattern,)) != before

    assert counts("rows[1].json", "rows[1].json") and not counts("rows[1].json", "rows1.json")
    assert counts("a*b/part-*.parquet", "a*b/part-2.parquet") and counts("w?.json", "w?.json")
    assert counts("rows[*.json", "rows[1].json") and not counts("rows[*.json", "rows1.json")


def test_a_file_that_was_only_touched_keeps_the_digest(tmp_path):
    folder, fetched, memory = tmp_path / "data", str(tmp_path / "files.parquet"), str(tmp_path / "memory.jsonl")
    (folder / "images").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (folder / "images" / name).write_bytes(name.encode())
    paths = [f"images/{name}" for name in ("a.jpg", "b.jpg")]
    hashes = [file_sha256(folder / path) for path in paths]
    write_table(fetched, pa.table({"path": paths, "bytes": [5, 5], "sha256": hashes}))
    arguments = (str(folder), ("images/",), fetched, memory)

    def now() -> str:
        folder_digest.cache_clear()
        return folder_digest(*arguments)

    before = now()
    remember(*arguments)
    os.utime(folder / paths[0], (5, 5))
    assert now() == before
    remember(*arguments)
    assert now() == before
    (folder / paths[1]).write_bytes(b"c.jpg")
    assert now() != before
    (folder / paths[1]).write_bytes(b"b.jpg")
    assert now() == before
    (folder / "images/c.jpg").write_bytes(b"more")
    assert now() != before


def test_a_base_counts_by_content_and_not_by_time(tmp_path):
    folder, root = tmp_path / "base", tmp_path / "results"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")

    def now(weights: bool = True) -> str:
        base_digest.cache_clear()
        return base_digest(str(folder), str(root), weights)

    before, without = now(), now(weights=False)
    os.utime(folder / "config.json", (5, 5))
    assert now() == before
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert now() != before and now(weights=False) == without
    (folder / "config.json").write_text("{ }")
    assert now(weights=False) != without
    assert base_digest(str(folder), str(tmp_path), True) == "", "below the results, where its manifest is the cause"
    assert base_digest("openai/clip-vit-large-patch14", str(root), True) == ""


def own_digest(folder, *patterns):
    folder_digest.cache_clear()
    return folder_digest(str(folder), patterns)


def test_the_whole_folder_counts_without_hidden_files_and_results(data):
    before = own_digest(data, "./")
    for name in (".hidden/a.json", "images/.a.jpg", "results/configuration.json", "results/raw/x.json"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"1")
    assert own_digest(data, "./") == before
    (data / "parts/new.jsonl").write_bytes(b"1")
    changed = own_digest(data, "./")
    assert changed != before
    (data / "parts/new.jsonl").unlink()
    assert own_digest(data, "./") == before


@pytest.mark.parametrize("pattern", ["**/*.jsonl", "d/**", "d", "d/", "*/e/*.jsonl"])
def test_patterns_reach_into_folders(data, pattern):
    before = own_digest(data, pattern)
    (data / "d/e").mkdir(parents=True)
    assert own_digest(data, pattern) == before
    (data / "d/e/x.jsonl").write_bytes(b"1")
    assert own_digest(data, pattern) != before


def test_logs_and_recipes_beside_the_data_of_a_user_do_not_count(data):
    def whole():
        folder_digest.cache_clear()
        return folder_digest(str(data), ("./",), follow=True)

    before = whole()
    for name in ("run.log", "pets.yaml", "look.HTML", "images/notes.txt"):
        (data / name).write_text("1")
    assert whole() == before
    (data / "images/unknown").write_text("1")
    assert whole() != before
