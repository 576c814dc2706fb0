"""Keys: recognisable, safe for every reader of shards, and never shared by two images."""

import hashlib
import posixpath
import re
from collections import Counter

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from scripts.media import keys
from scripts.media.keys import MAX_KEY_BYTES

SAFE = re.compile(r"[A-Za-z0-9_/-]+")


def keys_of(paths):
    """The key of every path, by path."""
    return dict(zip(paths, keys.keys_of(pa.array(paths, pa.string())).to_pylist(), strict=True))


def one_by_one(paths):
    """The same rule in its plainest form: the stem if it is safe and no other path has it, else a hash of the path."""

    def key(path: str) -> str:
        stem = posixpath.splitext(path)[0]
        safe = re.fullmatch(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*", stem)
        if safe and len(stem) <= MAX_KEY_BYTES and uses[stem.lower()] == 1:
            return stem
        readable = re.sub(r"[^A-Za-z0-9_/-]+", "_", stem).strip("/")
        return f"{readable[: MAX_KEY_BYTES - 17]}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"

    uses = Counter(posixpath.splitext(path)[0].lower() for path in set(paths))
    return {path: key(path) for path in paths}


def test_a_plain_path_is_its_own_key():
    assert keys_of(["coco/train2017/000000009.jpg"]) == {"coco/train2017/000000009.jpg": "coco/train2017/000000009"}
    assert keys_of([]) == {}


def test_odd_paths_stay_recognisable():
    (key,) = keys_of(["coco/my photos/a.b ü.JPG"]).values()
    assert re.fullmatch(r"coco/my_photos/a_b_-[0-9a-f]{16}", key)


def test_files_that_differ_in_extension_or_case_get_different_keys():
    by_path = keys_of(["x/a.jpg", "x/a.png", "x/B.jpg", "x/b.jpg", "x/c.jpg"])
    assert len({key.lower() for key in by_path.values()}) == 5 and by_path["x/c.jpg"] == "x/c"


_NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
_PATH = st.lists(_NAME, min_size=1, max_size=4).map(lambda parts: f"d/{'/'.join(parts)}.jpg")
_PATHS = st.lists(_PATH, unique=True, max_size=30)


@given(_PATHS)
def test_any_paths(paths):
    by_path = keys_of(paths)
    assert len(set(by_path.values())) == len(paths)
    assert all(SAFE.fullmatch(key) and len(key) <= MAX_KEY_BYTES for key in by_path.values())


# The Kelvin sign is a "k" in lower case; the dotted capital I becomes two characters.
_PIECES = ["a", "A", "k", "K", "\u212a", "İ", "i", "ß", ".", "..", "/", "_", " ", "\n", ".jpg", ".png", "x" * 40]


@given(st.lists(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=7).map("".join), max_size=12))
def test_columns_give_the_keys_of_the_rule_path_by_path(paths):
    paths += paths[:2]  # an archive may list a path twice
    assert keys_of(paths) == one_by_one(paths)


def test_a_key_does_not_depend_on_other_images():
    paths = [f"d/{name}.jpg" for name in ("a", "b.c", "e f", "x" * 200)]
    together = keys_of(paths)
    assert all(keys_of([path])[path] == together[path] for path in paths)
