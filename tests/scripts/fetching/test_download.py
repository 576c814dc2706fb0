"""Downloads from a server that does everything servers do: the file is right, or there is none."""

import fcntl
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.common.files import bytes_sha256
from scripts.fetching.connection import FetchOptions
from scripts.fetching.download import download_file
from scripts.fetching.verification import AddressError, Expected, WrongContentError
from tests.disks import PowerCut
from tests.scripts.fetching.server import File, page, status

DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SHA256, MD5 = bytes_sha256(DATA), hashlib.md5(DATA).hexdigest()
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def place(tmp_path):
    return tmp_path / "folder" / "file.bin"


def _nothing_but(place, *names):
    return sorted(path.name for path in place.parent.iterdir()) == sorted(names)


def test_a_file_arrives_whole(server, place, options):
    server.routes["/f"] = File(DATA, etag='"1"')
    fetched = download_file(f"{server.url}/f", place, Expected(len(DATA), SHA256, MD5), options)
    assert place.read_bytes() == DATA and (fetched.bytes, fetched.sha256) == (len(DATA), SHA256)
    assert _nothing_but(place, "file.bin") and server.ranges() == [None]
    os.umask(mask := os.umask(0))
    assert place.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_is_on_the_disk_before_it_has_its_name(server, place, options, monkeypatch):
    disk = PowerCut(monkeypatch)
    server.routes["/f"] = File(DATA, etag='"1"')
    download_file(f"{server.url}/f", place, options=options)
    assert disk.renames == [("file.bin.part.json", True), ("file.bin", True)]


@pytest.mark.parametrize("body", [b"", b"x"])
def test_small_files_arrive(server, place, options, body):
    server.routes["/f"] = File(body, etag='"1"')
    assert download_file(f"{server.url}/f", place, options=options).sha256 == bytes_sha256(body)
    assert place.read_bytes() == body and _nothing_but(place, "file.bin")


@pytest.mark.parametrize("version", [{"etag": '"1"'}, {"modified": "Tue, 14 Nov 2023 22:13:20 GMT"}])
def test_a_cut_line_is_continued(server, place, options, version):
    server.routes["/f"] = [File(DATA, cut=100_000, **version), File(DATA, cut=50_000, **version), File(DATA, **version)]
    fetched = download_file(f"{server.url}/f", place, options=options)
    assert place.read_bytes() == DATA and fetched.sha256 == SHA256
    assert server.ranges() == [None, "bytes=100000-", "bytes=150000-"]
    assert server.requests[1].headers["if-range"] == next(iter(version.values()))


def test_a_line_that_is_cut_again_and_again_arrives_in_the_end(server, place, options):
    server.routes["/f"] = File(DATA, etag='"1"', cut=20_000)
    download_file(f"{server.url}/f", place, options=options)
    assert place.read_bytes() == DATA and len(server.requests) == len(DATA) // 20_000 > options.retries


def test_a_stall_is_ended_and_continued(server, place):
    server.routes["/f"] = [File(DATA, etag='"1"', stall=100_000), File(DATA, etag='"1"')]
    download_file(f"{server.url}/f", place, options=FetchOptions(timeout=1.0, backoff=0.001))
    assert place.read_bytes() == DATA and server.ranges() == [None, "bytes=100000-"]


def test_a_server_that_never_goes_on_is_given_up_and_the_part_kept(server, place, options):
    server.routes["/f"] = [File(DATA, etag='"1"', cut=100_000), status(503)]
    with pytest.raises(AddressError, match="503"):
        download_file(f"{server.url}/f", place, options=options)
    assert _nothing_but(place, "file.bin.part", "file.bin.part.json")
    server.routes["/f"] = File(DATA, etag='"1"')
    download_file(f"{server.url}/f", place, options=options)
    assert place.read_bytes() == DATA and server.ranges()[-1] == "bytes=100000-"


@pytest.mark.parametrize(
    "second",
    [
        File(DATA, etag='"1"', ranges=False),
        File(DATA, etag='"2"'),
        File(DATA, etag='"2"', heeds=False),
        File(DATA, etag='W/"1"', heeds=False),
    ],
    ids=["knows no ranges", "changed", "changed, and knows no If-Range", "not surely the same"],
)
def test_a_server_that_cannot_continue_starts_again(server, place, options, second):
    server.routes["/f"] = [File(OTHER, etag='"1"', cut=100_000), second]
    assert download_file(f"{server.url}/f", place, options=options).sha256 == SHA256
    assert place.read_bytes() == DATA and server.ranges()[1] == "bytes=100000-"


@pytest.mark.parametrize("etag", ["", 'W/"1"'], ids=["none", "one that similar files may share"])
def test_what_has_no_sure_version_is_not_continued(server, place, options, etag):
    server.routes["/f"] = [File(OTHER, etag=etag, cut=100_000), File(DATA, etag=etag)]
    assert download_file(f"{server.url}/f", place, options=options).sha256 == SHA256
    assert server.ranges() == [None, None]


def test_a_date_means_nothing_to_another_server(server, place, options):
    date = "Tue, 14 Nov 2023 22:13:20 GMT"
    server.routes |= {
        "/a": [File(OTHER, modified=date, cut=1000), status(404)],
        "/b": [File(DATA, modified=date, cut=1000), status(404)],
        "/c": File(DATA, modified=date),
    }
    for name in "ab":
        with pytest.raises(AddressError):
            download_file(f"{server.url}/{name}", place, options=options)
    assert server.ranges() == [None, "bytes=1000-", None, "bytes=1000-"]
    download_file(f"{server.url}/c", place, options=options, source=f"{server.url}/b")
    assert place.read_bytes() == DATA and server.ranges()[-1] == "bytes=1000-"


def test_a_mirror_continues_what_has_the_same_etag(server, place, options):
    server.routes |= {"/a": [File(DATA, etag='"1"', cut=1000), status(404)], "/b": File(DATA, etag='"1"')}
    with pytest.raises(AddressError):
        download_file(f"{server.url}/a", place, options=options)
    download_file(f"{server.url}/b", place, options=options)
    assert place.read_bytes() == DATA and server.ranges()[-1] == "bytes=1000-"


def test_a_length_that_is_not_declared(server, place, options):
    server.routes["/f"] = [File(DATA, etag='"1"', chunked=True, cut=1000), File(DATA, etag='"1"', chunked=True)]
    assert download_file(f"{server.url}/f", place, options=options).sha256 == SHA256


def test_a_body_that_comes_compressed_all_the_same(server, place, options):
    server.routes["/f"] = File(gzip.compress(DATA), etag='"1"', headers={"Content-Encoding": "gzip"})
    assert download_file(f"{server.url}/f", place, Expected(sha256=SHA256), options).bytes == len(DATA)
    assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "answer",
    [
        page("<html><head><title>Sign in\n please</title></head></html>"),
        status(200, b"\xef\xbb\xbf \n<!DOCTYPE html><title>Sign in please</title>", Content_Type="application/zip"),
        status(200, b"<HTML><TITLE>Sign in please</TITLE>"),
    ],
    ids=["by its type", "by its beginning", "without a type"],
)
def test_a_page_is_not_the_file(server, place, options, answer):
    server.routes["/f"] = answer
    with pytest.raises(AddressError, match=r"a web page \(Sign in please\) instead of the file"):
        download_file(f"{server.url}/f", place, options=options)
    assert _nothing_but(place) and len(server.requests) == 1


def test_a_page_does_not_cost_what_has_arrived(server, place, options):
    server.routes["/f"] = [File(DATA, etag='"1"', cut=100_000), page("<html>"), File(DATA, etag='"1"')]
    with pytest.raises(AddressError, match="web page"):
        download_file(f"{server.url}/f", place, options=options)
    download_file(f"{server.url}/f", place, options=options)
    assert place.read_bytes() == DATA and server.ranges()[-1] == "bytes=100000-"


def test_a_page_may_be_what_is_wanted(server, tmp_path, options):
    server.routes["/f"] = page("<html></html>")
    download_file(f"{server.url}/f", tmp_path / "card.html", options=options)
    assert (tmp_path / "card.html").read_text() == "<html></html>"


def test_another_size_is_refused_before_it_is_fetched(server, place, options):
    server.routes["/f"] = File(DATA, stall=0)
    with pytest.raises(AddressError, match="offers 300,000 bytes, but the published file has 300,001"):
        download_file(f"{server.url}/f", place, Expected(300_001), options)
    assert _nothing_but(place)


@pytest.mark.parametrize("size", [299_999, 300_001])
def test_another_size_that_is_not_declared_is_found(server, place, options, size):
    server.routes["/f"] = File(DATA, chunked=True)
    with pytest.raises(WrongContentError, match=f"{size:,}"):
        download_file(f"{server.url}/f", place, Expected(size), options)
    assert _nothing_but(place)


def test_more_than_the_file_has_is_not_awaited(server, place):
    server.routes["/f"] = File(DATA, chunked=True, stall=200_000)
    with pytest.raises(WrongContentError, match="sends more than the 100,000 bytes"):
        download_file(f"{server.url}/f", place, Expected(100_000), FetchOptions(retries=0, timeout=5.0))
    assert _nothing_but(place)


@pytest.mark.parametrize(
    "expected", [Expected(sha256="0" * 64), Expected(md5="0" * 32), Expected(len(DATA), SHA256, "0" * 32)]
)
def test_a_wrong_hash_leaves_nothing(server, place, options, expected):
    server.routes["/f"] = File(DATA, etag='"1"')
    with pytest.raises(WrongContentError, match=f"(sha256 {SHA256}|md5 {MD5}) instead of 0000"):
        download_file(f"{server.url}/f", place, expected, options)
    assert _nothing_but(place) and len(server.requests) == 1


def test_a_damaged_part_is_found_and_fetched_again(server, place, options):
    server.routes["/f"] = [File(DATA, etag='"1"', cut=100_000), status(404), File(DATA, etag='"1"')]
    with pytest.raises(AddressError):
        download_file(f"{server.url}/f", place, options=options)
    with open(f"{place}.part", "r+b") as part:
        part.write(b"damage")
    download_file(f"{server.url}/f", place, Expected(sha256=SHA256), options)
    assert place.read_bytes() == DATA and server.ranges()[-2:] == ["bytes=100000-", None]


@pytest.mark.parametrize("notes", [None, "{", "[]", '{"etag": 1, "odd": 2}'])
def test_a_part_without_its_notes_is_of_no_use(server, place, options, notes):
    place.parent.mkdir()
    Path(f"{place}.part").write_bytes(OTHER[:1000])
    if notes is not None:
        Path(f"{place}.part.json").write_text(notes)
    server.routes["/f"] = File(DATA, etag='"1"')
    download_file(f"{server.url}/f", place, options=options)
    assert place.read_bytes() == DATA and server.ranges() == [None]


def test_a_part_longer_than_the_file_starts_again(server, place, options):
    place.parent.mkdir()
    Path(f"{place}.part").write_bytes(DATA + b"more")
    notes = {"source": "", "etag": '"1"', "modified": "", "total": 400_000}
    Path(f"{place}.part.json").write_text(json.dumps(notes))
    server.routes["/f"] = File(DATA, etag='"1"')
    download_file(f"{server.url}/f", place, options=options)
    assert place.read_bytes() == DATA and server.ranges() == ["bytes=300004-", None]


def test_a_part_that_is_whole_needs_no_request(server, place, options):
    place.parent.mkdir()
    Path(f"{place}.part").write_bytes(DATA)
    notes = {"source": "", "etag": '"1"', "modified": "", "total": len(DATA)}
    Path(f"{place}.part.json").write_text(json.dumps(notes))
    assert download_file(f"{server.url}/f", place, options=options).sha256 == SHA256
    assert server.requests == [] and _nothing_but(place, "file.bin")


def test_a_part_belongs_to_one_process(server, place, options):
    place.parent.mkdir()
    with open(f"{place}.part", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            download_file(f"{server.url}/f", place, options=options)
    assert server.requests == []


def test_a_part_that_another_process_has_just_finished_is_not_written_to(server, place, options, monkeypatch):
    """It got its name between our opening it and our getting hold of it."""
    place.parent.mkdir()
    part = Path(f"{place}.part")
    part.write_bytes(DATA)
    lock = fcntl.flock

    def late(file, operation):
        os.replace(part, place)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UserError, match="another process"):
        download_file(f"{server.url}/f", place, options=options)
    assert place.read_bytes() == DATA and server.requests == []


def test_a_full_disk_is_seen_before_it_is_full(server, place, options, monkeypatch):
    server.routes["/f"] = File(DATA, stall=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(UserError, match="free some space") as caught:
        download_file(f"{server.url}/f", place, options=options)
    assert not isinstance(caught.value, AddressError)


def test_what_has_arrived_needs_no_room_again(server, place, options, monkeypatch):
    server.routes["/f"] = [File(DATA, etag='"1"', cut=100_000), status(404), File(DATA, etag='"1"')]
    with pytest.raises(AddressError):
        download_file(f"{server.url}/f", place, options=options)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(300_000, 100_000, 200_000))
    download_file(f"{server.url}/f", place, options=options)
    assert place.read_bytes() == DATA and server.ranges()[-1] == "bytes=100000-"


def test_a_folder_that_cannot_be_written(server, tmp_path, options):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        download_file(f"{server.url}/f", tmp_path / "file" / "f.bin", options=options)


def test_headers_stay_with_their_host(server, place, options):
    server.routes |= {
        "/f": status(302, Location=f"http://localhost:{server.url.rsplit(':', 1)[1]}/g"),
        "/g": File(DATA),
    }
    download_file(f"{server.url}/f", place, options=options, headers={"Authorization": "Bearer secret"})
    assert [request.headers.get("authorization") for request in server.requests] == ["Bearer secret", None]


def test_a_killed_run_is_continued_by_the_next(server, place, options):
    server.routes["/f"] = [File(DATA, etag='"1"', stall=200_000), File(DATA, etag='"1"')]
    program = f"""
from pathlib import Path
from scripts.fetching.download import download_file
download_file({server.url + "/f"!r}, Path({str(place)!r}))
"""
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    part = Path(f"{place}.part")
    while run.poll() is None and not (part.is_file() and part.stat().st_size == 200_000):
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not place.exists()
    fetched = download_file(f"{server.url}/f", place, Expected(sha256=SHA256), options)
    assert fetched.bytes == len(DATA) and place.read_bytes() == DATA
    assert server.ranges() == [None, "bytes=200000-"] and _nothing_but(place, "file.bin")


def test_progress_is_printed_without_a_terminal(server, place, options, capsys):
    server.routes["/f"] = File(DATA, etag='"1"')
    download_file(f"{server.url}/f", place, options=options)
    assert capsys.readouterr().err.startswith("file.bin: 100% 300k/300k [")
