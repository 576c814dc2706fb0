"""What is remembered of a file holds as long as the file is the same."""

import os

import pytest

from scripts.common.errors import UserError
from scripts.common.files import bytes_sha256
from scripts.fetching import receipts
from scripts.fetching.verification import Expected, Fetched


@pytest.fixture
def fetched(tmp_path):
    """A data path with one file that was fetched."""
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/a.zip").write_bytes(b"data")
    receipts.write_receipt(tmp_path, "coco/a.zip", "http://x/a.zip", Fetched(4, bytes_sha256(b"data")))
    return tmp_path


def test_a_receipt_holds_while_nobody_touches_the_file(fetched):
    receipt = receipts.valid(fetched, "coco/a.zip")
    assert (receipt.address, receipt.bytes, receipt.sha256) == ("http://x/a.zip", 4, bytes_sha256(b"data"))
    assert (fetched / ".fetched/coco/a.zip.json").is_file()


def test_a_touched_file_is_another(fetched):
    status = (fetched / "coco/a.zip").stat()
    os.utime(fetched / "coco/a.zip", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert receipts.valid(fetched, "coco/a.zip") is None


def test_a_file_of_another_size_is_another(fetched):
    status = (fetched / "coco/a.zip").stat()
    (fetched / "coco/a.zip").write_bytes(b"other")
    os.utime(fetched / "coco/a.zip", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert receipts.valid(fetched, "coco/a.zip") is None


def test_all_files_with_a_receipt_are_found_in_one_pass(fetched, tmp_path):
    (fetched / "coco/b.zip").write_bytes(b"data")
    receipts.mark_partial(fetched, "coco/train/")
    (fetched / ".fetched/coco/\udcff.json").write_text("{}")
    assert receipts.recorded(fetched) == {"coco/a.zip"}
    assert receipts.recorded(tmp_path / "nothing") == frozenset()


def test_no_file_or_no_receipt(fetched):
    (fetched / "coco/b.zip").write_bytes(b"data")
    assert receipts.valid(fetched, "coco/b.zip") is None
    (fetched / "coco/a.zip").unlink()
    assert receipts.valid(fetched, "coco/a.zip") is None


@pytest.mark.parametrize("text", ["", "[]", '{"address": "x"}', "\xff"])
def test_a_damaged_receipt_is_none(fetched, text):
    (fetched / ".fetched/coco/a.zip.json").write_text(text, encoding="latin-1")
    assert receipts.valid(fetched, "coco/a.zip") is None


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_paths_stay_below_the_data_path(tmp_path, path):
    with pytest.raises(UserError, match="is not a path below"):
        receipts.below(tmp_path, path)
    with pytest.raises(UserError):
        receipts.mark_partial(tmp_path, path)


def test_a_refusal_holds_while_the_same_is_expected(tmp_path):
    expected, other = Expected(sha256="1" * 64), Expected(sha256="2" * 64)
    receipts.add_rejection(tmp_path, "a", "http://x", expected, "wrong")
    receipts.add_rejection(tmp_path, "a", "http://y", expected, "wrong too")
    assert receipts.rejection(tmp_path, "a", "http://x", expected) == "wrong"
    assert receipts.rejection(tmp_path, "a", "http://y", expected) == "wrong too"
    assert receipts.rejection(tmp_path, "a", "http://x", other) is None
    assert receipts.rejection(tmp_path, "b", "http://x", expected) is None
    receipts.add_rejection(tmp_path, "a", "http://z", other, "wrong as well")
    assert receipts.rejection(tmp_path, "a", "http://x", expected) is None
    receipts.delete_rejections(tmp_path, "a")
    assert receipts.rejection(tmp_path, "a", "http://z", other) is None


def test_a_partial_folder_is_known_and_holds_nothing_of_it(tmp_path):
    (tmp_path / "coco/train2017").mkdir(parents=True)
    assert not receipts.is_partial(tmp_path, "coco/train2017/")
    receipts.mark_partial(tmp_path, "coco/train2017/")
    assert receipts.is_partial(tmp_path, "coco/train2017/") and receipts.is_partial(tmp_path, "coco/train2017")
    assert not receipts.is_partial(tmp_path, "coco/val2017/")
    assert list((tmp_path / "coco/train2017").iterdir()) == []
