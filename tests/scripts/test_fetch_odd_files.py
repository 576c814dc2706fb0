"""Odd files in a folder of images: each costs itself, with a reason, and neither stops nor delays its source."""

import io
import json
import os
import socket
import subprocess
import sys
import zipfile

import pyarrow.parquet as pq
import pytest
from PIL import Image

from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import SOURCES, custom_dataset, custom_source
from scripts.config.tolerance import ToleranceConfig
from scripts.convert import convert
from scripts.fetch import fetch
from scripts.media_index import write_index
from scripts.shard import write_shard


def image(format_="JPEG", colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), colour).save(buffer, format_)
    return buffer.getvalue()


def _built(data, out):
    """Paths of the images of coco below `data`, and the reasons of those rejected, as shard sees them."""
    fetch(SOURCES["coco"], data, out / "raw", ["coco/train2017/"])
    write_shard("coco", out / "raw", 1, 0, out / "media")
    write_index("coco", 1, out / "raw", out / "media")
    good = pq.read_table(out / "media/index.parquet").to_pylist()
    bad = pq.read_table(out / "media/rejected.parquet").to_pylist()
    return {row["path"]: row for row in good}, {row["path"]: row["reason"] for row in bad}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data/coco/train2017"
    folder.mkdir(parents=True)
    (folder / "good.jpg").write_bytes(image())
    return folder


def _socket(path):
    # The path of a socket is short.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


ODD = {
    "pipe": (os.mkfifo, "not_a_file"),
    "socket": (_socket, "not_a_file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not_a_file"),
    "dangling link": (lambda path: path.symlink_to("nowhere.jpg"), "broken_link"),
    "link to itself": (lambda path: path.symlink_to(path.name), "broken_link"),
    "link to a folder": (lambda path: path.symlink_to("/tmp"), "not_a_file"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_costs_itself(folder, tmp_path, name):
    make, reason = ODD[name]
    make(folder / "odd.jpg")
    good, bad = _built(tmp_path / "data", tmp_path)
    assert list(good) == ["coco/train2017/good.jpg"] and bad == {"coco/train2017/odd.jpg": reason}


def test_a_pipe_does_not_stop_the_program(folder, tmp_path):
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe")
    run = [sys.executable, "-m", "scripts.fetch", "--source", "coco", "--require", "coco/train2017/"]
    run += ["--data-path", str(tmp_path / "data"), "--out", str(tmp_path / "raw")]
    assert subprocess.run(run, timeout=120, check=False).returncode == 0


def test_a_file_that_became_a_pipe_is_not_waited_for(folder, tmp_path):
    fetch(SOURCES["coco"], tmp_path / "data", tmp_path / "raw", ["coco/train2017/"])
    (folder / "good.jpg").unlink()
    os.mkfifo(folder / "good.jpg")
    table = write_shard("coco", tmp_path / "raw", 1, 0, tmp_path / "media")
    assert table["reason"].to_pylist() == ["not_a_file"]


def test_a_name_that_is_not_utf8_costs_itself(folder, tmp_path):
    (folder / os.fsdecode(b"odd-\xff.jpg")).write_bytes(image())
    (folder / os.fsdecode(b"folder-\xfe")).mkdir()
    (folder / os.fsdecode(b"folder-\xfe") / "inside.jpg").write_bytes(image())
    good, bad = _built(tmp_path / "data", tmp_path)
    assert list(good) == ["coco/train2017/good.jpg"]
    assert bad == dict.fromkeys(
        ["coco/train2017/folder-\\udcfe/inside.jpg", "coco/train2017/odd-\\udcff.jpg"], "invalid_utf8"
    )


def test_images_are_known_by_their_content_where_their_name_does_not_show_it(folder, tmp_path):
    files = {
        "a.jfif": image(),
        "b.jpe": image(),
        "c.avif": image("AVIF"),
        "d.jp2": image("JPEG2000"),
        "e": image("PNG"),
        "f.download": image("WEBP"),
        "g.bmp2": image("BMP"),
        "words": b"BM, and no image",
        "notes.txt": b"II think",
        "empty": b"",
        "h.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    good, bad = _built(tmp_path / "data", tmp_path)
    prefix = "coco/train2017/"
    formats = {path.removeprefix(prefix): row["format"] for path, row in good.items()}
    expected = {"a.jfif": "jpg", "b.jpe": "jpg", "c.avif": "avif", "d.jp2": "jp2", "e": "png", "good.jpg": "jpg"}
    assert formats == expected | {"f.download": "webp", "g.bmp2": "bmp"}
    assert bad == {f"{prefix}h.heic": "unsupported_format"}


def _fetched(tmp_path, members, rows):
    """The folders raw and media of a custom dataset whose images lie in an archive."""
    data = tmp_path / "data"
    data.mkdir()
    with zipfile.ZipFile(data / "pictures.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "This."}]
    (data / "rows.json").write_text(json.dumps([{"id": row, "image": row, "conversations": turns} for row in rows]))
    config = CustomDatasetConfig(folder=str(data), files=("rows.json",), images="pictures.zip", licence="MIT", terms=())
    source, dataset = custom_source("own", config), custom_dataset("own", config)
    fetch(source, data, tmp_path / "raw", dataset=dataset)
    write_shard("own", tmp_path / "raw", 1, 0, tmp_path / "media")
    write_index("own", 1, tmp_path / "raw", tmp_path / "media")


def _custom(tmp_path, members, rows):
    """The report of a custom dataset whose images lie in an archive, and the image of every row that is kept."""
    _fetched(tmp_path, members, rows)
    report = convert("own", {"own": tmp_path / "raw"}, {"own": tmp_path / "media"}, tmp_path / "records")
    records = pq.read_table(tmp_path / "records/own.parquet").to_pylist()
    paths = {row["key"]: row["path"] for row in pq.read_table(tmp_path / "media/index.parquet").to_pylist()}
    return report, {row["uid"].removeprefix("own:"): paths[row["images"][0]["key"]] for row in records}


def test_an_archive_with_folders_never_gives_another_image(tmp_path):
    members = {"originals/a.jpg": image(), "augmented/solo.jpg": image(), "originals/b.jpg": image()}
    rows = ["originals/a.jpg", "solo.jpg", "b.jpg", "originals/solo.jpg", "augmented/solo.jpg"]
    report, found = _custom(tmp_path, members, rows)
    assert found == {name: f"pictures/{name}" for name in ("originals/a.jpg", "augmented/solo.jpg")}
    lost = report["dropped"]["missing_image"]
    assert lost["count"] == 3 and "pictures/augmented/solo.jpg" in lost["examples"][0]


def test_the_top_folder_of_an_archive_may_be_named_or_not(tmp_path):
    members = {"top/a.jpg": image(), "top/sub/b.jpg": image()}
    _, found = _custom(tmp_path, members, ["a.jpg", "top/a.jpg", "sub/b.jpg", "top/sub/b.jpg"])
    expected = {"a.jpg": "a.jpg", "top/a.jpg": "a.jpg", "sub/b.jpg": "sub/b.jpg", "top/sub/b.jpg": "sub/b.jpg"}
    assert found == {row: f"pictures/{path}" for row, path in expected.items()}


@pytest.mark.parametrize(("lost", "stops"), [(0, False), (2, False), (50, True)])
def test_without_a_tolerance_the_program_stops_where_more_than_a_twentieth_of_own_rows_is_lost(tmp_path, lost, stops):
    rows = [*["a.jpg"] * (55 - lost), *["nowhere.jpg"] * lost]
    _fetched(tmp_path, {"a.jpg": image()}, rows)
    run = [sys.executable, "-m", "scripts.convert", "--dataset", "own", "--out", str(tmp_path / "records")]
    run += ["--raw", f"own={tmp_path / 'raw'}", "--media", f"own={tmp_path / 'media'}"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == int(stops), done.stderr
    if stops:
        assert "50 of 55 rows cannot be used, more than the share of 0.05" in done.stderr
    else:
        warning = "WARNING: 2 of 55 rows of own (3.6%) are not used: 2 missing_image. Examples: "
        assert (warning in done.stdout) == bool(lost) and (tmp_path / "records/own.parquet").exists()
    assert ToleranceConfig().rows_of(custom=False) == ToleranceConfig().images == 0.5


def test_images_beyond_the_tolerance_stop_the_index(folder, tmp_path):
    (folder / "bad.jpg").write_bytes(b"words")
    fetch(SOURCES["coco"], tmp_path / "data", tmp_path / "raw", ["coco/train2017/"])
    write_shard("coco", tmp_path / "raw", 1, 0, tmp_path / "media")
    run = [sys.executable, "-m", "scripts.media_index", "--source", "coco", "--shards", "1"]
    run += ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "media")]
    done = subprocess.run([*run, "--tolerance", "0.1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "1 of 2 images cannot be read, more than the share of 0.1" in done.stderr
    done = subprocess.run([*run, "--tolerance", "0.5"], capture_output=True, text=True, check=False)
    assert "WARNING: 1 of 2 images of coco (50.0%) are not used: 1 not_an_image" in done.stdout
