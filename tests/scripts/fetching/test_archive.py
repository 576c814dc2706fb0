"""One file out of an archive, and nothing else, wherever the archive would like to put it."""

import io
import stat
import tarfile
import zipfile

import pytest

from scripts.common.files import bytes_sha256
from scripts.fetching.archive import extract_member, is_inside
from scripts.fetching.verification import AddressError, Expected, WrongContentError
from tests.disks import PowerCut
from tests.scripts.fetching.archives import tar_member, tar_of, zip_of

DATA = b"[1, 2, 3]" * 1000


@pytest.fixture
def unpack(tmp_path):
    """Put an archive on the disk and take `file.json` out of it; nothing else may appear."""

    def run(name, archive, member="file.json", **further):
        (tmp_path / name).write_bytes(archive)
        place = tmp_path / "out" / "file.json"
        try:
            fetched = extract_member(tmp_path / name, member, place, **further)
        except AddressError:
            assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
            (tmp_path / name).unlink()
            raise
        assert [path.name for path in place.parent.iterdir()] == ["file.json"]
        data = place.read_bytes()
        place.unlink()
        (tmp_path / name).unlink()
        assert (fetched.bytes, fetched.sha256) == (len(data), bytes_sha256(data))
        return data

    return run


@pytest.mark.parametrize("name", ["file.json", "./file.json", "top/file.json", "./top/file.json"])
@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tar.gz", "x.TGZ"])
def test_a_file_is_found_with_or_without_its_folder(unpack, kind, name):
    other = {"other.json": b"x", "top/deep/file.json": b"y", "notfile.json": b"z"}
    if kind == "x.zip":
        archive = zip_of({**other, name: DATA})
    else:
        members = [(tar_member(key), data) for key, data in {**other, name: DATA}.items()]
        archive = tar_of(members, "w" if kind == "x.tar" else "w:gz")
    assert unpack(kind, archive) == DATA


def test_a_file_is_on_the_disk_before_it_has_its_name(unpack, monkeypatch):
    disk = PowerCut(monkeypatch)
    unpack("x.zip", zip_of({"file.json": DATA}))
    assert disk.renames == [("file.json", True)]


def test_the_plain_name_goes_before_one_in_a_folder(unpack):
    assert unpack("x.zip", zip_of({"a/file.json": b"1", "file.json": b"2", "b/file.json": b"3"})) == b"2"


def test_two_that_could_be_meant_are_refused(unpack):
    with pytest.raises(AddressError, match=r"several times: a/file.json, b/file.json"):
        unpack("x.zip", zip_of({"a/file.json": b"1", "b/file.json": b"3"}))


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
def test_a_member_that_is_not_there(unpack, kind):
    archive = zip_of({"a": b""}) if kind == "x.zip" else tar_of([(tar_member("a"), b"")])
    with pytest.raises(AddressError, match=r"contains no file.json"):
        unpack(kind, archive)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_tar_member_that_is_no_plain_file(unpack, kind):
    archive = tar_of([(tar_member("real"), DATA), (tar_member("top/file.json", kind, "real"), b"")])
    with pytest.raises(AddressError, match=r"top/file.json is not a plain file"):
        unpack("x.tar.gz", archive)


@pytest.mark.parametrize("name", ["../file.json", "/file.json", "..\\/file.json"])
def test_a_name_that_leads_out(unpack, name):
    with pytest.raises(AddressError, match="leads out"):
        unpack("x.tar.gz", tar_of([(tar_member(name), DATA)]))
    with pytest.raises(AddressError, match="leads out"):
        unpack("x.zip", zip_of({name: DATA}))


def test_a_zip_member_that_is_a_link(unpack):
    with pytest.raises(AddressError, match=r"file.json is not a plain file"):
        unpack("x.zip", zip_of({"file.json": b"/etc/passwd"}, links=["file.json"]))


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_zip_member_that_is_no_plain_file(unpack, kind):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        info = zipfile.ZipInfo("file.json")
        info.external_attr = (kind | 0o644) << 16
        file.writestr(info, DATA)
    with pytest.raises(AddressError, match=r"file\.json is not a plain file"):
        unpack("x.zip", archive.getvalue())


@pytest.mark.parametrize("name", ["/a", "../a", "a/../../b", "a\\b", "a\0b"])
def test_names_that_no_archive_may_bring(name):
    assert not is_inside(name) and is_inside("a/b..c/.d")


def test_other_members_may_be_anything(unpack):
    evil = [
        (tar_member("../evil"), b"x"),
        (tar_member("/tmp/evil"), b"x"),
        (tar_member("l", tarfile.SYMTYPE, "/"), b""),
    ]
    assert unpack("x.tar.gz", tar_of([*evil, (tar_member("l/file.json"), DATA)])) == DATA


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz"])
def test_a_member_that_claims_too_much(unpack, kind):
    archive = zip_of({"file.json": DATA}) if kind == "x.zip" else tar_of([(tar_member("file.json"), DATA)])
    assert unpack(kind, archive, limit=len(DATA)) == DATA
    with pytest.raises(AddressError, match="claims 9,000 bytes, which is more than the 8,999 allowed"):
        unpack(kind, archive, limit=len(DATA) - 1)


def test_what_is_expected_is_that_of_the_member(unpack):
    archive = tar_of([(tar_member("file.json"), DATA)])
    assert unpack("x.tar.gz", archive, expected=Expected(len(DATA), bytes_sha256(DATA))) == DATA
    with pytest.raises(WrongContentError):
        unpack("x.tar.gz", archive, expected=Expected(sha256="0" * 64))


@pytest.mark.parametrize("kind", ["x.zip", "x.tar.gz", "x.tar"])
@pytest.mark.parametrize("damage", ["cut", "nonsense", "empty"])
def test_a_damaged_archive(unpack, kind, damage):
    whole = zip_of({"file.json": DATA}) if kind == "x.zip" else tar_of([(tar_member("file.json"), DATA)], "w:gz")
    archive = {"cut": whole[: len(whole) // 2], "nonsense": b"nonsense" * 200, "empty": b""}[damage]
    with pytest.raises(AddressError, match="is damaged"):
        unpack(kind, archive)


def test_a_flipped_bit(unpack):
    archive = bytearray(zip_of({"file.json": DATA}, zipfile.ZIP_STORED))
    archive[200] ^= 1
    with pytest.raises(AddressError, match="is damaged: Bad CRC-32"):
        unpack("x.zip", bytes(archive))


def test_other_archives_are_not_known(unpack):
    with pytest.raises(AddressError, match=r"x.rar is not a supported archive"):
        unpack("x.rar", b"")
