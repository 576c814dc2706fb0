"""Kinds of questions."""

import json

import pytest

from scripts.common.errors import UserError
from scripts.evaluation.question_kinds import classify, read_kinds

KINDS = [
    {"name": "colour", "pattern": "^What colour", "images": "one", "scored": True},
    {"name": "more", "pattern": "has more", "images": "several", "scored": True},
    {"name": "caption", "pattern": "(?i)describe", "images": "one", "scored": False},
]


def write(folder, value) -> str:
    path = folder / "kinds.json"
    path.write_text(json.dumps(value))
    return str(path)


def test_first_matching_kind_wins(tmp_path):
    kinds = read_kinds(write(tmp_path, [*KINDS, KINDS[0] | {"name": "late", "pattern": "What"}]))
    assert classify("What colour is it?", kinds, "llava", 1).name == "colour"
    assert classify("What is it?", kinds, "llava", 1).name == "late"
    assert classify("Which image has more?", kinds, "llava", 2).images == "several"
    assert not classify("Describe it.", kinds, "llava", 1).scored


def test_a_question_of_no_kind_is_scored_as_other(tmp_path):
    kind = classify("Why?", read_kinds(write(tmp_path, KINDS)), "llava", 2)
    assert (kind.name, kind.images, kind.scored) == ("other", None, True)


@pytest.mark.parametrize(("images", "group"), [(0, None), (1, "one"), (2, "several"), (5, "several")])
def test_without_kinds_the_dataset_is_the_kind(images, group):
    kind = classify("Why?", [], "llava", images)
    assert (kind.name, kind.images, kind.scored) == ("llava", group, True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x"}, "exactly the keys"),
        (KINDS[0] | {"images": "two"}, '"one" or "several"'),
        (KINDS[0] | {"pattern": "("}, "regular expression"),
        (KINDS[0] | {"scored": "yes"}, "true or false"),
        (KINDS[0] | {"name": "other"}, "names of kinds must be unique"),
        (KINDS[1] | {"name": "caption"}, "names of kinds must be unique"),
    ],
)
def test_bad_entries_are_named(tmp_path, entry, message):
    with pytest.raises(UserError, match=message):
        read_kinds(write(tmp_path, [entry, KINDS[2]]))


@pytest.mark.parametrize("value", [[], {}, "kinds"])
def test_not_a_list(tmp_path, value):
    with pytest.raises(UserError, match="non-empty JSON list"):
        read_kinds(write(tmp_path, value))
