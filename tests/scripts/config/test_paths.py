"""What a path of the configuration may not hold, and what the message names."""

import copy

import pytest

from scripts.common.errors import UserError
from scripts.config import settings
from tests.workflow.project import TINY

OWN = {"folder": "pets", "files": ["rows.json"], "images": ["images/"]}


def load(place: tuple, value: str) -> settings.Settings:
    config = copy.deepcopy(TINY) | {"custom": {"pets": copy.deepcopy(OWN)}}
    inner = config
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return settings.load(config)


PLACES = [
    ("results",),
    ("data_path",),
    ("suites", "own"),
    ("custom", "pets", "folder"),
    ("custom", "pets", "images", 0),
    ("custom", "pets", "files", 0),
    ("tokens", "words", "tokenizer"),
    ("models", "small", "vision"),
    ("models", "small", "language"),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
@pytest.mark.parametrize("text", ["", " ", "a\nb", "a\0b", "a\tb", "a\x1bb", "a\x85b", "a\u2028b", "a\ud800b"])
def test_what_no_message_can_show_is_refused_everywhere(place, text):
    with pytest.raises(UserError) as caught:
        load(place, text)
    line = next(line for line in str(caught.value).splitlines() if ".".join(map(str, place)) in line)
    assert "empty" in line if not text.strip() else "rename" in line
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("place", "text", "words"),
    [
        (("results",), "-x", "begins with '-'; write the folder's full path"),
        (("results",), "./-x", "begins with '-'"),
        (("results",), " x", "begins with ' '"),
        (("results",), "~/x", "begins with '~'"),
        (("results",), "../x", "contains '..'"),
        (("results",), "a/../../x", "contains '..'"),
        (("results",), ".", "a folder of its own"),
        (("results",), "//", "a folder of its own"),
        (("results",), "s3://bucket/x", "is an address"),
        (("results",), "x{run}", "contains '{run}', which Snakemake reads as a wildcard"),
        (("results",), r"x{ run , \d{5} }", r"contains '{ run , \\d{5} }'"),
        (("results",), "x<results>", "contains '<results>', which Snakemake reads as a path variable"),
        (("suites", "own"), "x{run}.json", "contains '{run}'"),
        (("suites", "own"), "x<logs>.json", "contains '<logs>'"),
        (("suites", "own"), "-x.json", "write ./-x.json"),
        (("data_path",), "-x", "write ./-x"),
        (("data_path",), "~/data", "begins with '~'"),
        (("tokens", "words", "tokenizer"), "--help", "write ./--help"),
        (("models", "small", "vision"), "~/clip", "that folder's full path"),
        (("custom", "pets", "folder"), "-x", "write ./-x"),
        (("custom", "pets", "images", 0), "../images/", "below `folder`"),
        (("custom", "pets", "files", 0), "/rows.json", "below `folder`"),
    ],
)
def test_a_path_that_cannot_work_is_refused_with_its_key_and_a_remedy(place, text, words):
    with pytest.raises(UserError) as caught:
        load(place, text)
    line = str(caught.value).splitlines()[1]
    assert line.strip().startswith(".".join(map(str, place)) + ": ") and words in line


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("out/", "out"),
        ("./out", "out"),
        ("a//b/./c/", "a/b/c"),
        ("//disk/out", "/disk/out"),
        ("/-x", "/-x"),
        ("a{b", "a{b"),
        ("a{-b}c{}", "a{-b}c{}"),
        ("a<B>", "a<B>"),
        ("it's a $HOME", "it's a $HOME"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_a_results_root_has_one_form(given, root):
    assert load(("results",), given).results == root


def test_names_that_the_graph_takes_itself_are_refused():
    with pytest.raises(UserError, match=r"custom\.miniature: .* choose another"):
        settings.load(copy.deepcopy(TINY) | {"custom": {"miniature": OWN}})
    with pytest.raises(UserError, match=r"suites\.heldout: .* choose another"):
        settings.load(copy.deepcopy(TINY) | {"suites": {"heldout": "a.json"}})
