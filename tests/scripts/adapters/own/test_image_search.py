"""Names, bytes and addresses of rows find the image that was meant, or are refused with what may have been meant."""

import unicodedata

import pyarrow as pa
import pytest

from scripts.adapters.base import RowError
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.own.image_search import OwnImages
from scripts.adapters.own.image_values import ImageAddress, ImageBytes, ImageName
from scripts.adapters.source_images import SourceImages
from scripts.media.hashed_names import downloaded_stem, embedded_path

URL = "https://example.org/cat.jpg?size=large"
PATHS = (
    *("pics/cat.jpg", "pics/Dog.JPG", "pics/sub/bird.png", "pics/x/same.jpg", "pics/y/same.jpg", "pics/a b.jpg"),
    *("pics/50%20.jpg", unicodedata.normalize("NFD", "pics/café.jpg"), "pics/z/W.jpg", "pics/z/w.jpg"),
    *(embedded_path(b"some bytes"), f"pics/web/{downloaded_stem(URL)}.jpg", "pics/back\\slash.jpg"),
)


def own_images(tmp_path, paths=PATHS, sets=None, rejected=None):
    bad = rejected or {"pics/broken.jpg": "truncated"}
    columns = [pa.chunked_array([pa.array(list(each), pa.string())]) for each in (paths, bad, bad.values())]
    images = SourceImages(columns[0], None, columns[1], columns[2])
    return OwnImages(ImageLookup({"own": images}), "own", sets or {"pics/": ""}, tmp_path)


def found(images, name, **more):
    """The path of the image, and how many notes there are."""
    return images.find(ImageName(name), **more).key, len(images.take_notes())


def refused(images, value, **more):
    with pytest.raises(RowError) as caught:
        images.find(ImageName(value) if isinstance(value, str) else value, **more)
    assert len(caught.value.detail) < 400 and "\n" not in caught.value.detail
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("name", "path", "notes"),
    [
        ("cat.jpg", "cat.jpg", 0),
        ("pics/cat.jpg", "cat.jpg", 0),
        ("./cat.jpg", "cat.jpg", 0),
        ("sub//bird.png", "sub/bird.png", 0),
        (".//sub/./bird.png", "sub/bird.png", 0),
        ("50%20.jpg", "50%20.jpg", 0),
        ("back\\slash.jpg", "back\\slash.jpg", 0),
        ("sub\\bird.png", "sub/bird.png", 1),
        (".\\pics\\sub\\bird.png", "sub/bird.png", 1),
        ("CAT.jpg", "cat.jpg", 1),
        ("dog.jpg", "Dog.JPG", 1),
        ("Pics/dog.jpg", "Dog.JPG", 1),
        ("café.jpg", unicodedata.normalize("NFD", "café.jpg"), 1),
        ("CAFÉ.jpg", unicodedata.normalize("NFD", "café.jpg"), 1),
        ("a%20b.jpg", "a b.jpg", 1),
        ("A%20B.jpg", "a b.jpg", 1),
        ("cat.jpg\n", "cat.jpg", 1),
        ("z/W.jpg", "z/W.jpg", 0),
    ],
)
def test_spellings_of_a_name(tmp_path, name, path, notes):
    assert found(own_images(tmp_path), name) == (f"pics/{path}", notes)


def test_a_note_names_both_spellings(tmp_path):
    images = own_images(tmp_path)
    images.find(ImageName("DOG.jpg"))
    assert [tuple(note) for note in images.take_notes()] == [("name_matched_loosely", "pics/Dog.JPG for DOG.jpg")]


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("Z/W.JPG", "ambiguous_image", "any of pics/z/W.jpg, pics/z/w.jpg"),
        ("same.jpg", "ambiguous_image", "any of pics/x/same.jpg, pics/y/same.jpg"),
        ("bird.png", "missing_image", "there is pics/sub/bird.png: meant?"),
        ("BIRD.png", "missing_image", "there is pics/sub/bird.png: meant?"),
        ("other/bird.png", "missing_image", "others with its name are pics/sub/bird.png"),
        ("cats.jpg", "missing_image", "nearest names are pics/cat.jpg"),
        ("nothing-like-it.jpg", "missing_image", "nothing-like-it.jpg"),
        ("../cat.jpg", "unsafe_path", "'..'"),
        ("sub/../cat.jpg", "unsafe_path", "'..'"),
        ("..\\cat.jpg", "unsafe_path", "'..'"),
        ("%2e%2e/cat.jpg", "unsafe_path", "'..'"),
        ("/etc/cat.jpg", "unsafe_path", "does not lie below"),
        ("/home/me/pics/sub/bird.png", "unsafe_path", "there is pics/sub/bird.png: meant?"),
        ("C:\\data\\pics\\cat.jpg", "unsafe_path", "there is pics/cat.jpg: meant?"),
        ("broken.jpg", "unreadable_image", r"pics/broken.jpg (truncated)"),
        ("x" * 4000, "missing_image", "xxx"),
        ("a\nb.jpg", "missing_image", r"a\nb.jpg"),
        ("half \udcc3.jpg", "missing_image", r"half \udcc3.jpg"),
    ],
)
def test_names_that_are_refused(tmp_path, name, reason, message):
    found_reason, detail = refused(own_images(tmp_path), name)
    assert found_reason == reason and message in detail


def test_absolute_paths_below_the_folder(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "pics").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(real)
    (real / "linked").symlink_to(tmp_path / "elsewhere")
    paths, sets = ("pics/cat.jpg", "linked/dog.jpg"), {"pics/": "", "linked/": ""}
    for folder in (real, link):
        images = own_images(tmp_path, paths, sets)
        images = own_images(folder, paths, sets)
        for name in (real / "pics/cat.jpg", link / "pics/cat.jpg", f"{link}//pics/./cat.jpg", f"{real}/cat.jpg"):
            assert found(images, str(name)) == ("pics/cat.jpg", 0)
        for name in (real / "linked/dog.jpg", tmp_path / "elsewhere/dog.jpg"):
            assert found(images, str(name)) == ("linked/dog.jpg", 0)
        assert found(images, f"{link}/pics/CAT.jpg") == ("pics/cat.jpg", 1)
        assert refused(images, str(tmp_path / "other/cat.jpg"))[0] == "unsafe_path"
        assert refused(images, f"{tmp_path}/real2/pics/cat.jpg")[0] == "unsafe_path"


def test_all_of_the_folder_is_a_set(tmp_path):
    images = own_images(tmp_path, ("a/cat.jpg", "dog.jpg"), {"./": ""})
    for name in ("a/cat.jpg", "./a/cat.jpg", str(tmp_path / "a/cat.jpg")):
        assert found(images, name) == ("a/cat.jpg", 0)
    assert refused(images, "cat.jpg") == ("missing_image", "cat.jpg; there is a/cat.jpg: meant?")


def test_the_common_folder_of_an_archive_is_optional(tmp_path):
    images = own_images(tmp_path, ("zip/train/cat.jpg", "zip/data.jpg"), {"zip/": "data/"})
    for name in ("data/train/cat.jpg", "train/cat.jpg", "zip/train/cat.jpg"):
        assert found(images, name) == ("zip/train/cat.jpg", 0)
    assert found(images, "DATA/train/cat.jpg") == ("zip/train/cat.jpg", 1)


def test_an_image_that_two_sets_have_is_ambiguous(tmp_path):
    images = own_images(tmp_path, ("a/cat.jpg", "b/cat.jpg", "b/dog.jpg"), {"a/": "", "b/": ""})
    assert refused(images, "cat.jpg") == ("ambiguous_image", "cat.jpg may be any of a/cat.jpg, b/cat.jpg")
    assert found(images, "dog.jpg") == ("b/dog.jpg", 0) and found(images, "a/cat.jpg") == ("a/cat.jpg", 0)


def test_names_beside_the_file_of_rows(tmp_path):
    images = own_images(tmp_path, ("train/cat.jpg", "train/x.jpg", "x.jpg"), {"./": ""})
    assert found(images, "cat.jpg", beside="train/") == ("train/cat.jpg", 0)
    assert refused(images, "x.jpg", beside="train/")[0] == "ambiguous_image"


def test_bytes_are_found_whatever_their_name(tmp_path):
    images = own_images(tmp_path)
    assert images.find(ImageBytes(b"some bytes", "cat.jpg")).key == embedded_path(b"some bytes")
    assert refused(images, ImageBytes(b"other bytes", "cat.jpg"))[0] == "missing_image"


def test_addresses_are_found_where_they_were_downloaded(tmp_path):
    images = own_images(tmp_path)
    assert images.find(ImageAddress(URL)).key == f"pics/web/{downloaded_stem(URL)}.jpg"
    reason, detail = refused(images, ImageAddress("http://example.org/dog.jpg"))
    assert reason == "remote_image" and "scripts.download_images" in detail
    reason, detail = refused(images, ImageAddress("s3://bucket/dog.jpg"))
    assert reason == "remote_image" and "only http and https" in detail


def test_a_missing_image_names_an_archive_that_is_not_opened(tmp_path):
    (tmp_path / "photos.zip").touch()
    assert "photos.zip may hold it" in refused(own_images(tmp_path), "lost.jpg")[1]
    assert "photos.zip" not in refused(own_images(tmp_path, ("photos/a.jpg",), {"photos/": ""}), "lost.jpg")[1]


def test_only_the_first_missing_images_are_explained_but_all_are_counted(tmp_path):
    images = own_images(tmp_path)
    details = [refused(images, f"cat{number}.jpg")[1] for number in range(30)]
    assert "nearest" in details[0] and details[-1] == "cat29.jpg"
    assert images._images.named == 30 and images._images.found == 0


def test_names_in_an_archive_may_be_relative_to_any_folder_that_contains_all_of_it(tmp_path):
    images = own_images(tmp_path, ("zip/cat.jpg", "zip/x/dog.jpg"), sets={"zip/": "mine/photos/"})
    for name in ("cat.jpg", "photos/cat.jpg", "mine/photos/cat.jpg"):
        assert found(images, name) == ("zip/cat.jpg", 0)
    assert found(images, "Photos/x/DOG.jpg") == ("zip/x/dog.jpg", 1)
    for name in ("mine/cat.jpg", "otherphotos/cat.jpg", "x/cat.jpg"):
        assert refused(images, name)[0] == "missing_image"
