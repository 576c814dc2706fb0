"""Members of rows without a value, under unusual names, or that would be lost if they were ignored."""

import pytest

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation_reader import read_row
from scripts.adapters.own.image_values import ImageName
from scripts.config.custom import OwnRowsConfig
from tests.scripts.adapters.own.written import chat, dropped, listed, notes, read

OWN = OwnRowsConfig()
ONE = ["U Who?", "A Me."]
PAIR = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
QUESTION = {"question": "Which animal?", "answer": "A cat."}


NESTED: list = []
for _ in range(900):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    "nothing", [[], [""], [None], [[None, ""]], [{}], {"path": None, "bytes": None}, [{"path": ""}], NESTED], ids=len
)
def test_lists_and_objects_of_nothing_are_no_values(nothing):
    row = {**QUESTION, "image": "cat.png", "videos": nothing, "messages": nothing, "history": nothing}
    found = read_row(row, OWN)
    assert (found.form, found.listed, found.notes) == ("question_answer", (ImageName("cat.png"),), ())


def test_lists_and_objects_with_a_value_are_values():
    with pytest.raises(RowError, match="unsupported_media"):
        read_row({**QUESTION, "videos": ["", "a.mp4"]}, OWN)
    with pytest.raises(RowError, match="unsupported_media"):
        read_row({**QUESTION, "video": {"bytes": None, "path": "a.mp4"}}, OWN)


def test_columns_of_a_spreadsheet_may_have_capitals():
    found = read_row({"Question": "Which animal?", "Answer": "A cat.", " Image": "cat.png"}, OWN)
    assert (found.form, found.listed) == ("question_answer", (ImageName("cat.png"),))


def test_names_that_differ_in_case_alone_are_not_guessed():
    with pytest.raises(RowError, match="unknown_form"):
        read_row({"Question": "Which?", "QUESTION": "What?", "Answer": "A cat."}, OWN)


def test_what_no_spelling_recognises_names_the_members_as_they_are():
    with pytest.raises(RowError, match=r"unknown_form.*Ask, Reply"):
        read_row({"Ask": "Which?", "Reply": "A cat."}, OWN)


def test_numbered_images_beside_a_first_one():
    assert listed(chat("Who?", "Me.", image="a", image2="b", image3="c")) == ["{a}", "{b}", "{c}"]
    assert listed(chat("Who?", "Me.", image="a", image_2="b")) == ["{a}", "{b}"]
    assert listed(chat("Who?", "Me.", images=["a", "b"], image_1="a")) == ["{a}", "{b}"]
    assert notes(chat("Who?", "Me.", image="a", image_2="b")) == {}
    for row in ({"image": "a", "image_1": "b"}, {"images": ["a", "b"], "image_2": "c"}):
        reason, detail = dropped(chat("Who?", "Me.", **row))
        assert reason == "ambiguous_images" and f"columns: {{images: {next(iter(row))}}}" in detail


@pytest.mark.parametrize("member", [{"type": "image", "url": "a.png"}, {"image": "a.png"}, {"raw": b"\x89PNG"}])
def test_an_object_that_holds_an_image_is_not_ignored(member):
    for value in (member, [member]):
        assert dropped(chat("Who?", "Me.", attached=value))[0] == "unknown_image_member"
    assert notes(chat("Who?", "Me.", attached=member, image="a")) == {"ignored:attached": 1}


def test_rows_for_evaluation_that_are_trained_on_are_noted():
    for name, value in (("split", "test"), ("Split", "Validation"), ("subset", "dev")):
        row = chat("Who?", "Me.", **{name: value})
        assert notes(row) == {"unused_split": 1}
        (note,) = read_row(row, OwnRowsConfig()).notes
        assert f"split: {{column: {name}}}" in note.example
        assert read_row(row, OwnRowsConfig.model_validate({"split": {"column": name}})).notes == ()
    assert notes(chat("Who?", "Me.", split="train")) == {"ignored:split": 1}
    assert notes(chat("Who?", "Me.", result="test")) == {"ignored:result": 1}


def test_other_switches_of_the_loss_are_not_ignored():
    def row(**members):
        return {"messages": [*PAIR, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"} | members]}

    assert read(row(loss_scale=0)) == [*ONE, "U a", "(A) b"]
    for members in ({"masked": True}, {"mask": "User"}, {"training_detail": [{"begin_offset": 0, "train": False}]}):
        assert dropped(row(**members))[0] == "unsupported_loss"
        assert read(row(**members), ignore=list(members)) == [*ONE, "U a", "A b"]
    assert notes(row(mask=0)) == {"ignored:messages.mask": 1}
    assert dropped(chat("Who?", "Me.", "a", "b", weights=[0, 1]))[0] == "unsupported_loss"
