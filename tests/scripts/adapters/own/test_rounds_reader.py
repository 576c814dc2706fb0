"""Questions and answers in members of a row: lists written as texts, options, several questions."""

import json

import pytest

from tests.scripts.adapters.own.written import chat, dropped, notes, read

ONE = ["U Who?", "A Me."]
PAIR = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]


@pytest.mark.parametrize("text", ["[1, 2, 3]", '["a", "b"]', "[]", "[x]", '[{"author": "A", "title": "B"}]'])
def test_a_text_that_looks_like_a_list_is_a_text(text):
    for row in (
        {"instruction": "Sort.", "output": text},
        {"question": "Sort.", "answer": text},
        {"prompt": "Sort.", "completion": text},
        chat("Sort.", text),
    ):
        assert read(row) == ["U Sort.", f"A {text}"] and notes(row) == {}
    assert read({"question": text, "answer": "Yes."}) == [f"U {text}", "A Yes."]
    assert read({"image": "a.jpg", "caption": text})[1:] == [f"A {text}"]


def test_lists_in_texts_are_several_answers_or_turns():
    assert read({"questions": '["Who?", "a"]', "answers": "['Me.', 'b']"}) == [*ONE, "U a", "A b"]
    assert read({"question": "Who?", "answers": "['Me.', 'b', 'Me.']"}) == ONE
    assert read({"prompt": json.dumps(PAIR[:1]), "completion": repr(PAIR[1:])}) == ONE


@pytest.mark.parametrize(
    "names", [["A", "B"], ["option_a", "option_b"], ["choice_a", "choice_b"], ["option A", "option B"]]
)
def test_options_in_members_of_their_own_are_options(names):
    row = {"question": "Which?", **dict(zip(names, ["a cat", 2], strict=True)), "answer": "B", "C": None}
    assert read(row) == ["U Which?\nA. a cat\nB. 2", "A B"] and notes(row) == {"options_listed": 1}
    assert dropped(row | {"answer": "D"})[0] == "unsupported_options"
    alone = {"question": "Which?", "answer": "B", names[1]: "x"}
    assert read(alone) == ["U Which?", "A B"] and notes(alone) == {f"ignored:{names[1]}": 1}


def test_lists_of_questions_need_as_many_answers():
    assert dropped({"questions": ["a", "b"], "answers": ["c"]})[0] == "bad_row"
    assert dropped({"questions": ["a", "b"], "answers": "c"})[0] == "bad_row"
