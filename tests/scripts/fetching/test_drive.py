"""Files on Google Drive, behind its pages."""

import pytest

from scripts.fetching import drive
from scripts.fetching.download import download_file
from scripts.fetching.verification import AddressError
from tests.scripts.fetching import fakes
from tests.scripts.fetching.server import page, status

ID = "1nJXhoEcy3KTExr17I7BXqY5Y9Lx_-n-9"
FOLDER = "1_GYPY5UkUy7HIcR0zq3ZCFgeZN7BAfm_"
DATA = b"PK" + bytes(range(256)) * 100


@pytest.fixture
def google(server, monkeypatch):
    """A server that is taken for Google's."""
    fakes.through_loopback(server, monkeypatch)
    return server


def _fetch(url, tmp_path, options):
    location = drive.locate(url, options)
    download_file(location.url, tmp_path / "file", options=options)
    return (tmp_path / "file").read_bytes()


def test_a_small_file_comes_at_once(google, tmp_path, options):
    google.routes["/uc"] = fakes.drive_file(DATA)
    assert _fetch(f"drive://{ID}", tmp_path, options) == DATA
    assert all(request.path == f"/uc?export=download&id={ID}" for request in google.requests)


def test_a_large_file_asks_first(google, tmp_path, options):
    google.routes |= {"/uc": fakes.drive_question(ID), "/download": fakes.drive_file(DATA)}
    assert _fetch(f"drive://{ID}", tmp_path, options) == DATA
    assert google.requests[-1].path == f"/download?id={ID}&export=download&confirm=t&uuid=12-34"


def test_a_file_of_a_folder(google, tmp_path, options):
    google.routes |= {
        "/embeddedfolderview": fakes.drive_folder({"loadDataset.py": "2" * 33, "dataset.json": ID}),
        "/uc": fakes.drive_file(DATA),
    }
    assert drive.locate(f"drive-folder://{FOLDER}/dataset.json", options).name == "dataset.json"
    assert _fetch(f"drive-folder://{FOLDER}/dataset.json", tmp_path, options) == DATA
    assert google.requests[0].path == f"/embeddedfolderview?id={FOLDER}"
    assert google.requests[-1].path.endswith(ID)
    with pytest.raises(
        AddressError, match=f"contains no other.json: open https://drive.google.com/drive/folders/{FOLDER}"
    ):
        drive.locate(f"drive-folder://{FOLDER}/other.json", options)


def test_the_quota_is_named(google, options):
    google.routes["/uc"] = fakes.drive_refusal("Too many users have <b>viewed</b> or downloaded this file recently.")
    with pytest.raises(AddressError, match="Too many users have viewed or downloaded this file recently") as caught:
        drive.locate(f"drive://{ID}", options)
    assert f"https://drive.google.com/file/d/{ID}/view" in str(caught.value) and "\n" not in str(caught.value)


def test_the_quota_after_the_question_is_named(google, tmp_path, options):
    google.routes |= {"/uc": fakes.drive_question(ID), "/download": fakes.drive_refusal("Too many users")}
    with pytest.raises(AddressError, match="Google Drive - Quota exceeded"):
        _fetch(f"drive://{ID}", tmp_path, options)


def test_a_file_that_is_not_public(google, options):
    google.routes["/uc"] = page("<html><title>Sign in - Google Accounts</title><form id='login'></form></html>")
    with pytest.raises(AddressError, match="Anyone with the link") as caught:
        drive.locate(f"drive://{ID}", options)
    assert "FAQ" not in str(caught.value)


def test_a_page_of_another_form(google, options):
    google.routes["/uc"] = page("<html><form id='download-form'></form></html>")
    with pytest.raises(AddressError, match="format of its page has changed"):
        drive.locate(f"drive://{ID}", options)


def test_a_file_that_is_gone(google, options):
    with pytest.raises(AddressError, match="404"):
        drive.locate(f"drive://{ID}", options)


def test_a_busy_drive_is_asked_again(google, options):
    google.routes["/uc"] = [status(503), fakes.drive_file(DATA)]
    assert drive.locate(f"drive://{ID}", options).url.endswith(ID)


def test_a_folder_that_is_closed(google, options):
    with pytest.raises(AddressError, match="does not list the folder") as caught:
        drive.locate(f"drive-folder://{FOLDER}/dataset.json", options)
    assert "404" in str(caught.value) and "FAQ" not in str(caught.value)
