"""Reading dialogue suites: the format of the original, references, and invalid suites."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from scripts.common.errors import UserError
from scripts.evaluation.suite_reader import read_suite


def image(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def suite(folder: Path, tests, answers=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if answers is not None:
        (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "suite.json").write_text(json.dumps(tests))
    return folder / "suite.json"


def test_the_format_of_the_original(tmp_path):
    image(tmp_path / "images/a.png")
    image(tmp_path / "images/b c.png", "blue")
    path = suite(
        tmp_path,
        {
            "second": [["Hello?"]],
            "first": [
                ["What is here?", "images/a.png"],
                ["And now?", ""],
                ["And both?", "images/a.png 'images/b c.png'"],
                [" Again? "],
            ],
        },
    )
    second, first = read_suite(path).dialogues
    assert (second.name, first.name) == ("second", "first")
    assert [len(each.images) for each in first.rounds] == [1, 0, 2, 0]
    assert first.rounds[2].images[1].path == "images/b c.png"
    assert first.rounds[0].images[0].sha256 == hashlib.sha256((tmp_path / "images/a.png").read_bytes()).hexdigest()
    assert first.rounds[3].question == "Again?"
    assert first.rounds[0].references == ()


def test_references_beside_the_suite(tmp_path):
    path = suite(tmp_path, {"a": [["x?"], ["y?"], ["z?"]], "b": [["x?"]]}, {"a": ["1", ["2", "two"], None], "c": ["9"]})
    a, b = read_suite(path).dialogues
    assert [each.references for each in a.rounds] == [("1",), ("2", "two"), ()]
    assert b.rounds[0].references == ()


def test_image_root(tmp_path):
    image(tmp_path / "elsewhere/a.png")
    path = suite(tmp_path / "suites", {"a": [["x?", "a.png"]]})
    assert read_suite(path, tmp_path / "elsewhere").dialogues[0].rounds[0].images[0].path == "a.png"
    with pytest.raises(UserError, match="does not exist"):
        read_suite(path)


def test_paths_may_be_relative_to_the_project_folder(tmp_path):
    name = "./eval/eval_data/images/tiger/tiger.png"
    image(tmp_path / "project" / name)
    path = suite(tmp_path / "project/eval/eval_data", {"tiger": [["What is it?", name], ["Sure?"]]})
    assert read_suite(path).dialogues[0].rounds[0].images[0].path == name
    image(tmp_path / "project/secret.png")
    for names in ("secret.png", f"{name} secret.png"):
        with pytest.raises(UserError, match="does not exist"):
            read_suite(suite(tmp_path / "project/eval/eval_data", {"a": [["x?", names]]}))


def test_paths_must_not_leave_the_folder(tmp_path):
    secret = image(tmp_path / "secret.png")
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    for name in ("../secret.png", str(secret), "link.png"):
        path = suite(folder, {"a": [["x?"], ["x?", name]]})
        with pytest.raises(UserError, match=r"test 'a', round 2: image .* lies outside of"):
            read_suite(path)
        assert len(read_suite(path, allow_outside=True).dialogues[0].rounds[1].images) == 1


@pytest.mark.parametrize("content", [b"", b"not an image", b"truncated"])
def test_the_error_of_a_damaged_image_names_test_and_round(tmp_path, content):
    broken = image(tmp_path / "broken.png")
    broken.write_bytes(broken.read_bytes()[:-30] if content == b"truncated" else content)
    with pytest.raises(UserError, match=r"test 'a', round 1: .*broken.png"):
        read_suite(suite(tmp_path, {"a": [["x?", "broken.png"]]}))


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([], "JSON object of tests"),
        ({}, "JSON object of tests"),
        ({"a": []}, "test 'a' must be a list of rounds"),
        ({"a": ["x?"]}, "test 'a', round 1 must be"),
        ({"a": [["x?"], [""]]}, "test 'a', round 2 must be"),
        ({"a": [["x?", ["b.png"]]]}, "test 'a', round 1 must be"),
        ({"a": [["x?", "'b.png"]]}, "a quote is not closed"),
    ],
)
def test_bad_suites(tmp_path, tests, message):
    with pytest.raises(UserError, match=message):
        read_suite(suite(tmp_path, tests))


@pytest.mark.parametrize("answers", [{"a": ["1"]}, {"a": "1"}, {"a": [1, 2]}, ["1"]])
def test_bad_answers(tmp_path, answers):
    with pytest.raises(UserError, match=r"answers\.json"):
        read_suite(suite(tmp_path, {"a": [["x?"], ["y?"]]}, answers))


def test_the_error_of_broken_json_names_the_line(tmp_path):
    (tmp_path / "suite.json").write_text('{"a":\n [["x?"]')
    with pytest.raises(UserError, match="line 2"):
        read_suite(tmp_path / "suite.json")
