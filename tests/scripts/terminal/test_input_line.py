"""Typed lines, and paths in the forms in which terminals insert dropped files."""

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from model.question_parts import text_with_names
from scripts.chat import COMMANDS
from scripts.common.errors import UserError
from scripts.terminal.input_line import InputLine, parse_line, parse_paths
from scripts.terminal.line_editor import LineCompleter


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with images and other files."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "my cat.jpg", "notes", "notes.txt", "DOG.PNG"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "images", "text"),
    [
        ("What is this?", (), "What is this?"),
        ("cat.jpg What is this?", ("cat.jpg",), "What is this?"),
        ("cat.jpg  nowhere.JPEG", ("cat.jpg", "nowhere.JPEG"), ""),
        ("'my cat.jpg' What is this?", ("my cat.jpg",), "What is this?"),
        ("\"my cat.jpg\" 'cat.jpg'", ("my cat.jpg", "cat.jpg"), ""),
        ("my\\ cat.jpg What?", ("my cat.jpg",), "What?"),
        ("file:///home/me/my%20cat.jpg What?", ("/home/me/my cat.jpg",), "What?"),
        ("'file:///home/me/my%20cat.jpg' What?", ("/home/me/my cat.jpg",), "What?"),
        ("Is cat.jpg like DOG.PNG or image 1?", ("cat.jpg", "DOG.PNG"), "Is image 4 like image 5 or image 1?"),
        ("cat.jpg Is it like DOG.PNG ?", ("cat.jpg", "DOG.PNG"), "Is it like image 5 ?"),
        ("Is this John's or the dogs' cat?", (), "Is this John's or the dogs' cat?"),
        ("Read 'my notes' and say \"no\".", (), "Read 'my notes' and say \"no\"."),
        ("Is it a jpg, and/or 1/2 of one? ./nothing /", (), "Is it a jpg, and/or 1/2 of one? ./nothing /"),
        ("What is in notes.txt?", (), "What is in notes.txt?"),
        ("A line\\nwith a \\ backslash", (), "A line\\nwith a \\ backslash"),
        ("x" * 5000 + " /" + "y" * 5000, (), "x" * 5000 + " /" + "y" * 5000),
    ],
)
def test_images_and_question(folder, line, images, text):
    parsed = parse_line(line)
    assert parsed.images == images
    within = sum(isinstance(part, int) for part in parsed.parts)
    numbered = [4 + part if isinstance(part, int) else part for part in parsed.parts]
    assert text_with_names([*range(4, 4 + len(images) - within), "", *numbered]) == text


def test_files_without_an_image_suffix_are_images_if_they_exist(folder):
    assert parse_line("./notes What?") == InputLine(("./notes",), ("What?",))
    assert parse_line(f"{folder}/notes What?") == InputLine((f"{folder}/notes",), ("What?",))
    assert parse_line(f"{folder} What?") == InputLine((), (f"{folder} What?",)), "a folder is no image"


def test_images_within_a_question_keep_their_places(folder):
    line = parse_line("cat.jpg  Is it like DOG.PNG or 'my cat.jpg'?")
    assert line == InputLine(("cat.jpg", "DOG.PNG"), ("Is it like ", 1, " or 'my cat.jpg'?"))
    line = parse_line("Which is newer, cat.jpg or DOG.PNG")
    assert line == InputLine(("cat.jpg", "DOG.PNG"), ("Which is newer, ", 0, " or ", 1))


def test_paths(folder):
    assert parse_paths("a.jpg 'b c.jpg' d\\ e.jpg file:///f%20g.jpg") == ["a.jpg", "b c.jpg", "d e.jpg", "/f g.jpg"]
    with pytest.raises(UserError, match="a quote is not closed"):
        parse_paths("'a.jpg b.jpg")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("/im", {"/image", "/images"}),
        ("/save m", {"/save more"}),
        ("/image c", {"/image cat.jpg"}),
        ("/image D", {"/image DOG.PNG"}),
        ("/image my\\ c", {"/image my\\ cat.jpg"}),
        ("/image my", {"/image my\\ cat.jpg"}),
        ("'my c", {"'my cat.jpg"}),
        ("What is in ./c", {"What is in ./cat.jpg"}),
        ("What is in ./n", set()),
        ("c", set()),
    ],
)
def test_completion(folder, typed, completed):
    found = LineCompleter(COMMANDS).get_completions(Document(typed), CompleteEvent(completion_requested=True))
    assert {typed[: len(typed) + one.start_position] + one.text for one in found} == completed
