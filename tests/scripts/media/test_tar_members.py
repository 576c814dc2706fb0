"""Images in tars: listed where they are, read in any order; what is no regular file is a fault; damage is an error."""

import bz2
import gzip
import io
import lzma
import tarfile

import pytest

from scripts.common.errors import UserError
from scripts.media.containers import COMPRESSED_TAR, STORED, archive_root, list_container
from scripts.media.raw_images import RawImageReader

JPEG = b"\xff\xd8\xff" + bytes(700)
OPEN = {"a.tar": open, "a.tar.gz": gzip.open, "a.tgz": gzip.open, "a.tar.bz2": bz2.open, "a.tar.xz": lzma.open}
MODES = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tgz": "w:gz", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz"}


def write(path, members, mode="w", **options):
    """A tar of (name, data or link target, type)."""
    with tarfile.open(path, mode, **options) as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)


def regular(**members):
    return [(name, data, tarfile.REGTYPE) for name, data in members.items()]


def entries(path, root=""):
    return list(list_container(path, path.name, "pics/", root))


@pytest.mark.parametrize("name", MODES)
def test_members_are_read_from_where_they_are(tmp_path, name):
    images = {"train/a.jpg": JPEG, "./train/b": b"\x89PNG\r\n\x1a\n" + bytes(40), "train/.c.jpg": b"hidden"}
    images |= {"notes.txt": b"text", "train/empty.jpg": b""}
    write(tmp_path / name, regular(**images), MODES[name])
    assert archive_root([tmp_path / name]) == "train/"
    found = entries(tmp_path / name, "train/")
    assert [entry.path for entry in found] == ["pics/a.jpg", "pics/b", "pics/empty.jpg"]
    assert {entry.kind for entry in found} == {STORED if name == "a.tar" else COMPRESSED_TAR}
    reader = RawImageReader(tmp_path, {name: (tmp_path / name).stat().st_size}, found[:2])
    assert [reader.read(entry) for entry in reversed(found[:2])] == [images["./train/b"], JPEG]
    reader.close()


def test_what_is_no_regular_file_is_a_fault(tmp_path):
    members = [
        ("a.jpg", JPEG, tarfile.REGTYPE),
        ("link.jpg", "/etc/passwd", tarfile.SYMTYPE),
        ("hard.jpg", "a.jpg", tarfile.LNKTYPE),
        ("pipe.jpg", "", tarfile.FIFOTYPE),
        ("device.jpg", "", tarfile.CHRTYPE),
        ("folder.jpg", "", tarfile.DIRTYPE),
        ("../out.jpg", JPEG, tarfile.REGTYPE),
        ("/root.jpg", JPEG, tarfile.REGTYPE),
        ("b\\c.jpg", JPEG, tarfile.REGTYPE),
        ("a.jpg", JPEG, tarfile.REGTYPE),
        ("half \udcff.jpg", JPEG, tarfile.REGTYPE),
    ]
    write(tmp_path / "a.tar", members, format=tarfile.GNU_FORMAT)
    faults = [entry.fault for entry in entries(tmp_path / "a.tar")]
    assert faults == [
        *("", "symlink", "hard_link", "not_a_file", "not_a_file"),
        *("unsafe_path", "unsafe_path", "unsafe_path", "duplicate_name", "invalid_utf8"),
    ]


@pytest.mark.parametrize("name", MODES)
def test_an_archive_that_is_cut_off_is_an_error(tmp_path, name):
    write(
        tmp_path / name, regular(**{f"{number}.jpg": JPEG + bytes([number]) * 900 for number in range(5)}), MODES[name]
    )
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2] if name != "a.tar" else data[: 2 * 2560 + 100])
    with pytest.raises(UserError, match=r"is damaged or cut off, get it again"):
        entries(tmp_path / name)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    write(tmp_path / "a.tar", regular(**{"a.jpg": JPEG, "b.jpg": JPEG}))
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[512 + 1024 + 3] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        entries(tmp_path / "a.tar")


@pytest.mark.parametrize("data", [b"", b"text " * 300, b"\x1f\x8b" + bytes(100)])
def test_what_is_no_tar_is_an_error(tmp_path, data):
    (tmp_path / "a.tar.gz").write_bytes(data)
    with pytest.raises(UserError, match="damaged or cut off"):
        entries(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("name", MODES)
def test_a_tar_that_is_cut_between_two_members_is_damaged(tmp_path, name):
    """tarfile takes this for the end of the archive, and the images behind it would be lost."""
    write(tmp_path / "whole.tar", regular(**{"a.jpg": JPEG, "b.jpg": JPEG}))
    cut = (tmp_path / "whole.tar").read_bytes()[: 3 * tarfile.BLOCKSIZE]
    with OPEN[name](tmp_path / name, "wb") as file:
        file.write(cut)
    with pytest.raises(UserError, match="the end of the archive is missing"):
        entries(tmp_path / name)


@pytest.mark.parametrize("blocks", [5, 20])
@pytest.mark.parametrize("name", MODES)
def test_a_tar_that_goes_on_behind_its_end_is_refused(tmp_path, name, blocks):
    write(tmp_path / "one.tar", regular(**{"a.jpg": JPEG}))
    write(tmp_path / "two.tar", regular(**{"b.jpg": JPEG}))
    first = (tmp_path / "one.tar").read_bytes()[: blocks * tarfile.BLOCKSIZE]
    with OPEN[name](tmp_path / name, "wb") as file:
        file.write(first + (tmp_path / "two.tar").read_bytes())
    with pytest.raises(UserError, match="goes on behind its end"):
        entries(tmp_path / name)
