"""llava and llava_dial: rows of LLaVA's schema, also odd ones."""

import pytest

from tests.scripts.adapters.raw_folders import run, texts

DETAIL, REASONING, DIAL = "llava/detail_23k.json", "llava/complex_reasoning_77k.json", "llava/conversation_58k.json"


def row(*turns, image="000000000785.jpg", row_id="000000000785"):
    speakers = ("human", "gpt")
    conversation = [{"from": speakers[number % 2], "value": turn} for number, turn in enumerate(turns)]
    return {"id": row_id, "image": image, "conversations": conversation}


GOOD = row("<image>\nWhat is it?", "A skier.")


def test_llava_takes_the_first_question_and_answer_of_both_files(tmp_path):
    reasoning = [row("Why a hat?\n<image>", "It is cold.", "And gloves?", "Too.", row_id="7", image="000000197388.jpg")]
    records, dropped, notes = run("llava", tmp_path, {DETAIL: [GOOD], REASONING: reasoning})
    assert (dropped, notes) == ([], [])
    assert [record.id for record in records] == ["detail_23k-000000000785", "complex_reasoning_77k-7"]
    assert [texts(record) for record in records] == [[("What is it?", "A skier.")], [("Why a hat?", "It is cold.")]]
    assert records[1].images == (("coco", "coco/train2017/000000197388.jpg"),)
    assert records[1].rounds[0].images == (0,)


def test_llava_dial_takes_all_rounds_and_shows_the_image_once(tmp_path):
    records, dropped, _ = run("llava_dial", tmp_path, {DIAL: [row("<image>\nA?", "a", "B?", "b", "C?", "c")]})
    assert texts(records[0]) == [("A?", "a"), ("B?", "b"), ("C?", "c")] and dropped == []
    assert [round_.images for round_ in records[0].rounds] == [(0,), (), ()]


def test_a_last_question_without_an_answer_is_left_out_and_counted(tmp_path):
    records, _, notes = run("llava_dial", tmp_path, {DIAL: [row("A?", "a", "B?")]})
    assert texts(records[0]) == [("A?", "a")]
    assert [note.reason for note in notes] == ["unanswered_question"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("<image>\nQ?", "Q?"),
        ("Q?\n<image>", "Q?"),
        ("<image> Q?", "Q?"),
        ("See <image> here?", "See here?"),
        ("One.\n<image>\nTwo?", "One.\nTwo?"),
        ("<image><image>\n  Q?  ", "Q?"),
        ("<ima<image>ge>Q?", "<ima ge>Q?"),
    ],
)
def test_the_placeholder_is_removed_wherever_it_stands(tmp_path, written, read):
    records, _, _ = run("llava_dial", tmp_path, {DIAL: [row(written, "a <image>")]})
    assert texts(records[0]) == [(read, "a")]


@pytest.mark.parametrize("image", ["000000000785.jpg", "coco/train2017/000000000785.jpg"])
def test_the_image_may_be_named_with_its_folder(tmp_path, image):
    records, _, _ = run("llava_dial", tmp_path, {DIAL: [row("A?", "a", image=image)]})
    assert records[0].images[0].key == "coco/train2017/000000000785.jpg"


@pytest.mark.parametrize(
    ("bad", "reason", "word"),
    [
        (row("A?", "a", image="000000999999.jpg"), "missing_image", "999999"),
        (row("A?", "a", image="../../etc/passwd"), "unsafe_path", "passwd"),
        ({"id": "1", "conversations": []}, "bad_row", "no answer"),
        ({"id": "1", "conversations": GOOD["conversations"]}, "bad_row", "'image'"),
        ({"id": "1", "image": 5, "conversations": GOOD["conversations"]}, "bad_row", "'image'"),
        ({"id": "1", "image": "000000000785.jpg"}, "bad_row", "'conversations'"),
        (row("A?"), "bad_row", "no answer"),
        (row("", "a"), "empty_text", "turn 0"),
        (row("<image>", "a"), "empty_text", "turn 0"),
        (row("A?", " \n"), "empty_text", "turn 1"),
        (row("A?", "about <|image:0|>"), "reserved_text", "turn 1"),
        (row("A?", 5), "bad_row", "'value'"),
        (row("A?", "\ud800"), "invalid_utf8", "UTF-8"),
        ({**GOOD, "conversations": GOOD["conversations"][::-1]}, "bad_row", "'gpt'"),
        ("a string", "bad_row", "str"),
        (None, "bad_row", "NoneType"),
    ],
)
def test_a_bad_row_is_dropped_with_its_reason_and_spares_the_others(tmp_path, bad, reason, word):
    records, dropped, _ = run("llava_dial", tmp_path, {DIAL: [bad, GOOD]})
    assert len(records) == 1
    assert [item.reason for item in dropped] == [reason]
    assert word in dropped[0].example and f"{DIAL} row 0" in dropped[0].example


def test_a_row_without_an_id_goes_by_its_number(tmp_path):
    records, _, _ = run("llava_dial", tmp_path, {DIAL: [GOOD, {key: GOOD[key] for key in ("image", "conversations")}]})
    assert records[1].id == "1"
