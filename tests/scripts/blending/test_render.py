"""A plan row as messages: images in their places, supervised answers, and what a join has shown already."""

import pytest

from scripts.blending.render import messages
from scripts.common.records import named_slot, shown_slot
from tests.scripts.blending.plan_fixtures import record, turn

A, B = shown_slot(0), shown_slot(1)


def row(*records: dict, offsets: list[int] | None = None, named: list[bool] | None = None) -> dict:
    """A plan row that shows whole records."""
    counts = [len(each["images"]) for each in records]
    return {
        "uids": [each["uid"] for each in records],
        "choices": [[0] * len(each["groups"]) for each in records],
        "rounds": [list(range(len(each["rounds"]))) for each in records],
        "offsets": [sum(counts[:number]) for number in range(len(records))] if offsets is None else offsets,
        "named": [False] * len(records) if named is None else named,
    }


def written(message: dict) -> list:
    """The parts of a message: texts, and indices of images."""
    return [part["text"] if part["type"] == "text" else part["index"] for part in message["content"]]


def questions(*records: dict, **options) -> list[list]:
    result = messages(row(*records, **options), {each["uid"]: each for each in records})
    return [written(message) for message in result if message["role"] == "user"]


@pytest.mark.parametrize(
    ("question", "images", "expected"),
    [
        ("What?", [0, 1], [0, 1, "What?"]),
        (f"Which is newer, {A} or {B}?", [0, 1], ["Which is newer, ", 0, " or ", 1, "?"]),
        (f"{A}\nWhat is it?", [0], ["", 0, "\nWhat is it?"]),
        (f"{A}What is it?", [0], [0, "What is it?"]),
        (f"What is it? {A}", [0], ["What is it? ", 0]),
        (f"{A}{B}", [0, 1], [0, 1]),
        (f"{A}: what is it?", [0], ["", 0, ": what is it?"]),
        (f"Like {B}?", [0, 1], [0, "", "Like ", 1, "?"]),
        (f"{B}\nWhat now?", [0, 1], [0, "", 1, "\nWhat now?"]),
        (f"{B}: what is it?", [0, 1], [0, "", 1, ": what is it?"]),
        (f"Is {A} image {named_slot(0)}?", [0], ["Is ", 0, " image 1?"]),
    ],
)
def test_images_stand_where_the_question_shows_them(question, images, expected):
    assert questions(record("own:1", [f"i{n}" for n in images], [turn(question, "x", images)])) == [expected]


def test_a_concatenated_record_has_later_numbers():
    records = [record(f"own:{n}", ["a", "b"], [turn(f"Is {A} like {B}?", "x", [0, 1])]) for n in range(2)]
    assert questions(*records) == [["Is ", 0, " like ", 1, "?"], ["Is ", 2, " like ", 3, "?"]]


def test_an_image_that_was_shown_before_is_only_named():
    single = record("own:1", ["a"], [turn(f"{A}\nWhat is it?", "x", [0])])
    pair = record("own:2", ["a", "b"], [turn(f"Which is newer, {A} or {B}?", "x", [0, 1])])
    found = questions(single, pair, offsets=[0, 0])
    assert found == [["", 0, "\nWhat is it?"], [1, "Which is newer, image 1 or image 2?"]]
    follow_up = questions(single, single, offsets=[0, 0], named=[False, True])
    assert follow_up == [["", 0, "\nWhat is it?"], ["In image 1, what is it?"]]


def test_an_answer_that_is_not_supervised_says_so():
    rounds = [turn("One?", "1", supervised=False), turn("Two?", "2")]
    own = record("own:1", [], rounds)
    answers = [m for m in messages(row(own), {"own:1": own}) if m["role"] == "assistant"]
    assert [answer.get("supervised") for answer in answers] == [False, None]
