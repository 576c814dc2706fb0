"""Members of a zip that stays where it is: which requests it takes, and what is refused."""

import random
import resource
import zipfile
import zlib

import pytest

from scripts.common.files import bytes_sha256
from scripts.fetching.remote_zip import RemoteZip
from scripts.fetching.verification import AddressError, Expected, WrongContentError
from tests.scripts.fetching.archives import zip_of
from tests.scripts.fetching.server import File, page, status

NOISE = random.Random(0)
IMAGES = {f"train2017/{number:012d}.jpg": NOISE.randbytes(20_000) for number in range(40)}


@pytest.fixture
def remote(server, options):
    """A remote archive of these bytes."""

    def make(archive, **further):
        server.routes["/x.zip"] = archive if callable(archive) else File(archive, etag='"1"')
        return RemoteZip(f"{server.url}/x.zip", options, **further)

    return make


@pytest.mark.parametrize("pack", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_one_member_costs_one_request(remote, server, tmp_path, pack):
    archive = remote(zip_of(IMAGES, pack))
    assert list(archive.members()) == list(IMAGES) and len(server.requests) == 1
    name = "train2017/000000000007.jpg"
    fetched = archive.fetch(name, tmp_path / "7.jpg", Expected(20_000, bytes_sha256(IMAGES[name])))
    assert (tmp_path / "7.jpg").read_bytes() == IMAGES[name] and fetched.bytes == 20_000
    first, second = server.ranges()
    assert first == "bytes=-65536" and len(server.requests) == 2
    start, stop = map(int, second.removeprefix("bytes=").split("-"))
    assert stop - start < 21_000


def test_a_large_directory_costs_one_request_more(remote, server, tmp_path):
    members = {f"folder/{'n' * 60}{number}": b"%d" % number for number in range(2000)}
    archive = remote(zip_of(members, zipfile.ZIP_STORED), cache=tmp_path / "cache")
    assert len(archive.members()) == 2000 and len(server.requests) == 2
    name = list(members)[1234]
    archive.fetch(name, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"1234" and len(server.requests) == 3


def test_the_directory_is_fetched_once_per_version(remote, server, tmp_path):
    members = {f"folder/{'n' * 60}{number}": b"%d" % number for number in range(2000)}
    first = zip_of(members, zipfile.ZIP_STORED)
    remote(first, cache=tmp_path / "cache").members()
    again = remote(first, cache=tmp_path / "cache")
    assert list(again.members()) == list(members) and len(server.requests) == 2 + 1
    again.fetch(list(members)[1999], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"1999"
    changed = remote(File(zip_of({**members, "new": b"!"}, zipfile.ZIP_STORED), etag='"2"'), cache=tmp_path / "cache")
    assert "new" in changed.members() and len(server.requests) == 4 + 2


def test_zip64_beyond_four_gigabytes(remote, server, tmp_path):
    # A hole of 5 GB, then the archive: offsets need 64 bits, and the disk is not filled.
    place, far = tmp_path / "large.zip", 5 << 30
    with open(place, "wb") as file:
        file.seek(far)
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in IMAGES.items():
                archive.writestr(name, data)
    archive = remote(File(place, etag='"1"'))
    name = "train2017/000000000031.jpg"
    assert archive.members()[name].header_offset > far
    archive.fetch(name, tmp_path / "31.jpg")
    assert (tmp_path / "31.jpg").read_bytes() == IMAGES[name] and len(server.requests) == 2


def test_members_that_were_written_as_a_stream(remote, tmp_path):
    class Pipe:
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += bytes(data)
            return len(data)

        def flush(self):
            pass

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a", "b"):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(name.encode() * 3000)
    remote(pipe.data).extract({"a": tmp_path / "a", "b": tmp_path / "b"})
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"a" * 3000, b"b" * 3000]


def test_many_members_over_few_connections(remote, server, options, tmp_path, capsys):
    archive = remote(zip_of(IMAGES, zipfile.ZIP_STORED))
    wanted = {name: tmp_path / "out" / name.rpartition("/")[2] for name in list(IMAGES)[::2]}
    fetched = archive.extract(wanted)
    assert all(place.read_bytes() == IMAGES[name] for name, place in wanted.items())
    assert set(fetched) == set(wanted) and len(server.requests) == 1 + len(wanted)
    assert sorted((tmp_path / "out").iterdir()) == sorted(wanted.values())
    assert server.connections <= 1 + options.connections
    assert "x.zip: 100% 20/20 [" in capsys.readouterr().err


def test_what_is_there_whole_is_not_fetched_again(remote, server, tmp_path):
    archive = remote(zip_of(IMAGES))
    wanted = {name: tmp_path / name.rpartition("/")[2] for name in list(IMAGES)[:3]}
    archive.extract(wanted)
    before = len(server.requests)
    list(wanted.values())[1].write_bytes(b"half")
    assert list(archive.extract(wanted)) == [list(wanted)[1]] and len(server.requests) == before + 1
    assert all(place.read_bytes() == IMAGES[name] for name, place in wanted.items())
    assert archive.extract(wanted) == {} and len(server.requests) == before + 1


def test_a_line_that_is_cut_in_a_member(remote, server, tmp_path):
    archive = zip_of(IMAGES, zipfile.ZIP_STORED)
    good, bad = File(archive, etag='"1"'), File(archive, etag='"1"', cut=10_000)
    name = next(iter(IMAGES))
    opened = remote(good)
    opened.members()
    server.routes["/x.zip"] = [bad, status(503), good]
    opened.fetch(name, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == IMAGES[name] and len(server.requests) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("pack", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_refused(remote, tmp_path, pack):
    archive = bytearray(zip_of(IMAGES, pack))
    archive[5000] ^= 1
    with pytest.raises(AddressError, match=r"000000000000.jpg is damaged in the archive"):
        remote(bytes(archive)).fetch(next(iter(IMAGES)), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_member_that_unpacks_to_more_than_it_says(remote, tmp_path):
    bomb = zip_of({"a": bytes(10_000_000)})
    archive = bomb.replace((10_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    with pytest.raises(AddressError, match="damaged"):
        remote(archive).fetch("a", tmp_path / "x")
    with pytest.raises(AddressError, match="claims 10,000,000 bytes"):
        remote(bomb).extract({"a": tmp_path / "x"}, limit=9_999_999)
    assert list(tmp_path.iterdir()) == []


def test_what_it_unpacks_to_beyond_its_size_is_not_written(remote, tmp_path):
    archive = zip_of({"a": bytes(10_000_000)})
    archive = archive.replace((10_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(AddressError, match="damaged"):
            remote(archive).fetch("a", tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_bytes_that_cannot_be_unpacked(remote, tmp_path):
    archive = bytearray(zip_of({"a": b"text " * 1000}))
    archive[31] = 0xFF
    with pytest.raises(AddressError, match="a is damaged in the archive: Error -3"):
        remote(bytes(archive)).fetch("a", tmp_path / "x")


def test_a_member_that_reaches_into_the_next(remote, server, tmp_path):
    archive = zip_of({"a": b"1" * 1000, "b": b"2" * 999}, zipfile.ZIP_STORED)
    directory = archive.index(b"PK\x01\x02")
    lying = archive[:directory] + archive[directory:].replace(
        (1000).to_bytes(4, "little"), (1040).to_bytes(4, "little")
    )
    with pytest.raises(AddressError, match="a overlaps another member"):
        remote(lying).fetch("a", tmp_path / "x")
    assert len(server.requests) == 1


def test_what_is_expected_of_a_member(remote, tmp_path):
    with pytest.raises(WrongContentError, match="sha256"):
        remote(zip_of({"a": b"1"})).fetch("a", tmp_path / "x", Expected(sha256="0" * 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("link", "not a plain file"),
        ("folder/", "not a plain file"),
        ("../up", "leads out"),
        ("/root", "leads out"),
        ("none", "contains no none"),
    ],
)
def test_what_is_no_plain_file_of_the_archive(remote, tmp_path, name, expected):
    archive = zip_of({"link": b"/etc/passwd", "folder/": b"", "../up": b"x", "/root": b"x"}, links=["link"])
    with pytest.raises(AddressError, match=expected):
        remote(archive).extract({name: tmp_path / "x"})
    assert list(tmp_path.iterdir()) == []


def test_an_unsupported_compression_is_named(remote, tmp_path):
    with pytest.raises(AddressError, match="a is encrypted, or compressed with an unsupported method"):
        remote(zip_of({"a": b"1" * 100}, zipfile.ZIP_LZMA)).fetch("a", tmp_path / "x")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (File(zip_of(IMAGES), ranges=False), "range requests"),
        (page("<html>"), "range requests"),
        (File(b"no zip" * 100), "not a zip archive"),
        (File(zip_of(IMAGES)[:-1]), "not a zip archive"),
        (status(404), "404"),
    ],
)
def test_what_cannot_be_read_in_parts(remote, answer, expected):
    with pytest.raises(AddressError, match=expected):
        remote(answer).members()


def test_a_directory_that_is_larger_than_any(remote, server, tmp_path):
    place = tmp_path / "x.zip"
    with open(place, "wb") as file:
        file.truncate(1 << 32)
        end = bytearray(zip_of({"a": b""})[-22:])
        end[12:16], end[16:20] = (1 << 30).to_bytes(4, "little"), ((1 << 32) - (1 << 30)).to_bytes(4, "little")
        file.seek(0, 2)
        file.write(end)
    with pytest.raises(AddressError, match="larger than any"):
        remote(File(place, etag='"1"')).members()
    assert len(server.requests) == 1


def test_an_archive_that_changes_meanwhile(remote, server, tmp_path):
    archive = remote(zip_of(IMAGES))
    archive.members()
    server.routes["/x.zip"] = File(zip_of({**IMAGES, "more": b"x"}), etag='"2"')
    with pytest.raises(AddressError, match="has changed"):
        archive.fetch(list(IMAGES)[3], tmp_path / "x")


def test_a_directory_that_lies_about_its_members(remote, tmp_path):
    archive = bytearray(zip_of({"a": NOISE.randbytes(500), "b": NOISE.randbytes(500)}, zipfile.ZIP_STORED))
    archive[archive.index(b"PK\x03\x04", 4) + 1] ^= 1
    with pytest.raises(AddressError, match="not at the offset"):
        remote(bytes(archive)).fetch("b", tmp_path / "x")


def test_checksums_are_those_of_zip(remote):
    data = zip_of({"a": b"123"})
    assert zlib.crc32(b"123") == remote(data).members()["a"].CRC
