"""Images by path: the same answers as a dict, usable ones before rejected ones, other spellings through an index."""

import random

import pyarrow as pa
import pytest

from scripts.adapters.source_images import SourceImages


def column(*texts):
    return pa.chunked_array([pa.array(texts[:2], pa.string()), pa.array(texts[2:], pa.string())])


def images(paths=(), keys=None, rejected=(), reasons=()):
    return SourceImages(column(*paths), keys and column(*keys), column(*rejected), column(*reasons))


def test_equal_to_a_dict():
    draw = random.Random(5)
    names = {f"{draw.choice('abcé')}/{draw.randrange(3000)}.jpg" for _ in range(4000)}
    paths = sorted(names)
    known = {path: f"key {path}" for path in paths}
    found = images(paths, list(known.values()))
    for name in [*paths, *(f"a/{number}.jpg" for number in range(3000)), "", "a", "é/"]:
        row = found.row(name)
        assert (found.key(row) if row is not None else None) == known.get(name)


@pytest.mark.parametrize("paths", [(), ("a.jpg",)])
def test_few_images(paths):
    found = images(paths)
    assert found.row("a.jpg") == (0 if paths else None) and found.row("b.jpg") is None and found.usable == len(paths)


def test_a_usable_image_comes_before_a_rejected_one_of_its_path():
    found = images(["a.jpg", "b.jpg"], ["A", "B"], ["a.jpg", "c.jpg"], ["truncated", "corrupt"])
    assert found.key(found.row("a.jpg")) == "A" and found.reason(found.row("a.jpg")) == ""
    assert found.reason(found.row("c.jpg")) == "corrupt" and found.path(3) == "c.jpg"
    assert found.has_reason("corrupt") and not found.has_reason("too_large")


def test_without_keys_the_paths_are_keys():
    assert images(["a.jpg", "b.jpg", "c.jpg"]).key(2) == "c.jpg"


def test_other_spellings_are_found_in_the_order_of_rows():
    found = images(["x/A.jpg", "y/a.JPG", "z/b.jpg"])
    assert found.derived_rows(str.lower, "x/a.jpg") == [0]
    last = lambda path: path.rpartition("/")[2].lower()  # noqa: E731 - a function object is the index's name
    assert found.derived_rows(last, "a.jpg") == [0, 1] and found.derived_rows(last, "c.jpg") == []


def test_equal_hashes_do_no_harm(monkeypatch):
    monkeypatch.setattr("scripts.adapters.source_images.hash", lambda text: 7, raising=False)
    found = images(["a.jpg", "b.jpg", "c.jpg"])
    assert [found.row(name) for name in ("a.jpg", "c.jpg", "d.jpg")] == [0, 2, None]
    assert found.derived_rows(str.upper, "B.JPG") == [1]


def test_images_that_were_looked_up_are_counted_once():
    found = images(["a.jpg", "b.jpg"], None, ["c.jpg"], ["corrupt"])
    for row in (0, 0, 2):
        found.see(row)
    assert found.seen() == (1, 2)


def test_file_names_that_end_alike():
    found = images(["x/cat.jpg", "x/bobcat.jpg", "cat.jpg"])
    assert found.ending_with("cat.jpg") == ["x/cat.jpg", "cat.jpg"] and found.ending_with("\udc80.jpg") == []
