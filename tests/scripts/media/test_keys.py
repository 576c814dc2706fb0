"""Keys: recognisable, safe for every reader of shards, and never shared by two images."""

import re

from hypothesis import given
from hypothesis import strategies as st

from scripts.media.keys import MAX_KEY_BYTES, keys_of

SAFE = re.compile(r"[A-Za-z0-9_/-]+")


def test_a_plain_path_is_its_own_key():
    assert keys_of(["coco/train2017/000000009.jpg"]) == {"coco/train2017/000000009.jpg": "coco/train2017/000000009"}


def test_odd_paths_stay_recognisable():
    (key,) = keys_of(["coco/my photos/a.b ü.JPG"]).values()
    assert re.fullmatch(r"coco/my_photos/a_b_-[0-9a-f]{16}", key)


def test_files_that_differ_in_extension_or_case_get_different_keys():
    keys = keys_of(["x/a.jpg", "x/a.png", "x/B.jpg", "x/b.jpg", "x/c.jpg"])
    assert len({key.lower() for key in keys.values()}) == 5 and keys["x/c.jpg"] == "x/c"


_NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
_PATH = st.lists(_NAME, min_size=1, max_size=4).map(lambda parts: f"d/{'/'.join(parts)}.jpg")
_PATHS = st.lists(_PATH, unique=True, max_size=30)


@given(_PATHS)
def test_any_paths(paths):
    keys = keys_of(paths)
    assert len(set(keys.values())) == len(paths)
    assert all(SAFE.fullmatch(key) and len(key) <= MAX_KEY_BYTES for key in keys.values())


def test_a_key_does_not_depend_on_other_images():
    paths = [f"d/{name}.jpg" for name in ("a", "b.c", "e f", "x" * 200)]
    together = keys_of(paths)
    assert all(keys_of([path])[path] == together[path] for path in paths)
