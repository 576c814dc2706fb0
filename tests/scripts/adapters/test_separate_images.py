"""minigpt4, ocr_vqa and sparkles_dialogue: datasets that bring their own images."""

import pytest

from scripts.adapters.minigpt4 import PROMPTS
from tests.scripts.adapters.raw_folders import run, texts

CAPTIONS = "cc_sbu_align/filter_cap.json"
COVERS = "OCR_VQA/dataset.json"
CC = "SparklesDialogueCC/annotations/SparklesDialogueCC.json"
VG = "SparklesDialogueVG/annotations/SparklesDialogueVG.json"


def captioned(*rows):
    return {CAPTIONS: {"annotations": list(rows)}}


def caption_row(**changes):
    return {"image_id": "2", "caption": "The image shows a man fishing on a lawn."} | changes


def cover_row(**changes):
    row = {
        "imageURL": "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.jpg",
        "title": "Mind Your Manners",
        "genre": "Kids",
    }
    row |= {"questions": ["Who wrote this book?", "What is its title?"], "answers": ["B. B. Wolf", "Mind Your Manners"]}
    return row | {"authorName": "B. B. Wolf", "split": 1} | changes


def shown(*ids):
    return [{"image_id": id_, "caption": "a picture"} for id_ in ids]


def turn(role, content, *ids):
    return {"role": role, "content": content, "images": shown(*ids)}


def dialogue(*turns, other=None):
    """The two files of Sparkles: a dialogue of `turns` in CC, and a plain one in VG."""
    plain = [turn("user", "What is IMAGE#7<Img><ImageHere></Img>?", "7"), turn("assistant", "A cup.")]
    return {CC: [{"dialogue": list(turns)}], VG: [{"dialogue": other or plain}]}


def sparkles(tmp_path, files, cc=("12", "121", "5"), vg=("7",)):
    images = [f"SparklesDialogueCC/images/{id_}.jpg" for id_ in cc] + [
        f"SparklesDialogueVG/images/{id_}.jpg" for id_ in vg
    ]
    return run("sparkles_dialogue", tmp_path, files, images)


def test_any_prompt_asks_for_the_caption(tmp_path):
    records, dropped, _ = run("minigpt4", tmp_path, captioned(caption_row()), ["cc_sbu_align/image/2.jpg"])
    (record,) = records
    assert dropped == [] and record.id == "2"
    assert record.images == (("cc_sbu_align", "cc_sbu_align/image/2.jpg"),)
    assert record.groups == (("prompt", "pick", len(PROMPTS)),)
    assert record.rounds[0].question == PROMPTS and record.rounds[0].question_group == 0
    assert record.rounds[0].answer == ("The image shows a man fishing on a lawn.",)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (caption_row(image_id="3"), "missing_image"),
        (caption_row(image_id="../../secret"), "unsafe_path"),
        (caption_row(image_id=True), "bad_row"),
        (caption_row(image_id=None), "bad_row"),
        (caption_row(caption=" \n"), "empty_text"),
        (caption_row(caption=["a"]), "bad_row"),
        ({"caption": "x"}, "bad_row"),
        ("2", "bad_row"),
    ],
)
def test_a_caption_that_cannot_be_used_is_a_reason(tmp_path, bad, reason):
    files = captioned(caption_row(), bad)
    records, dropped, _ = run("minigpt4", tmp_path, files, ["cc_sbu_align/image/2.jpg"])
    assert len(records) == 1 and [item.reason for item in dropped] == [reason]


def test_a_question_about_a_cover_keeps_its_answer(tmp_path):
    records, dropped, _ = run(
        "ocr_vqa", tmp_path, {COVERS: {"761183272": cover_row()}}, ["OCR_VQA/images/761183272.jpg"]
    )
    (record,) = records
    assert dropped == [] and (record.id, record.split) == ("761183272", "train")
    # One group for both: whichever question is chosen, its own answer comes with it.
    assert record.groups == (("question", "pick", 2),)
    (round_,) = record.rounds
    assert (round_.question_group, round_.answer_group) == (0, 0)
    assert round_.question == ("Who wrote this book?", "What is its title?")
    assert round_.answer == ("B. B. Wolf", "Mind Your Manners")


def test_empty_answers_are_left_out_and_counted(tmp_path):
    row = cover_row(answers=["B. B. Wolf", " "])
    records, _, notes = run("ocr_vqa", tmp_path, {COVERS: {"1": row}}, ["OCR_VQA/images/1.jpg"])
    assert texts(records[0]) == [("Who wrote this book?", "B. B. Wolf")]
    assert records[0].groups == () and [note.reason for note in notes] == ["empty_answer"]


@pytest.mark.parametrize(("split", "name"), [(1, "train"), (2, "val"), (3, "test")])
def test_covers_of_benchmarks_keep_their_split(tmp_path, split, name):
    records, _, _ = run("ocr_vqa", tmp_path, {COVERS: {"1": cover_row(split=split)}}, ["OCR_VQA/images/1.jpg"])
    assert records[0].split == name


@pytest.mark.parametrize(
    ("url", "place"), [("http://x/a.gif", "1.gif"), ("http://x/a.gif", "1.jpg"), ("http://x/a?b", "1.png")]
)
def test_a_cover_is_found_under_the_ending_of_its_address_or_another(tmp_path, url, place):
    files = {COVERS: {"1": cover_row(imageURL=url)}}
    records, dropped, _ = run("ocr_vqa", tmp_path, files, [f"OCR_VQA/images/{place}"])
    assert dropped == [] and len(records) == 1


@pytest.mark.parametrize(
    ("id_", "bad", "reason"),
    [
        ("2", cover_row(), "missing_image"),
        ("../1", cover_row(), "unsafe_path"),
        ("1", cover_row(split=4), "bad_row"),
        ("1", cover_row(split="1"), "bad_row"),
        ("1", cover_row(imageURL=5), "bad_row"),
        ("1", cover_row(imageURL="http://[x/a.jpg"), "bad_row"),
        ("1", cover_row(answers=["one"]), "bad_row"),
        ("1", cover_row(answers=["a", 5]), "bad_row"),
        ("1", cover_row(answers=["", ""]), "empty_text"),
        ("1", cover_row(questions=[], answers=[]), "empty_text"),
        ("1", [], "bad_row"),
    ],
)
def test_a_cover_that_cannot_be_used_is_a_reason(tmp_path, id_, bad, reason):
    files = {COVERS: {"good": cover_row(), id_: bad}}
    records, dropped, _ = run("ocr_vqa", tmp_path, files, ["OCR_VQA/images/good.jpg", "OCR_VQA/images/1.jpg"])
    assert [record.id for record in records] == ["good"] and [item.reason for item in dropped] == [reason]


def test_names_of_images_become_slots_in_two_styles(tmp_path):
    turns = [
        turn(
            "user", "IMAGE#121<Img><ImageHere></Img> or IMAGE#12<Img><ImageHere></Img>: which is larger?", "121", "12"
        ),
        turn("assistant", "That is hard to say. IMAGE#12 is, though IMAGE#121 is near."),
        turn("user", "And IMAGE#5<Img><ImageHere></Img>?", "5"),
        turn("assistant", "Smaller than both."),
    ]
    records, dropped, _ = sparkles(tmp_path, dialogue(*turns))
    record = records[0]
    assert dropped == [] and record.id == "SparklesDialogueCC-0"
    folder = "SparklesDialogueCC/images/"
    assert record.images == tuple(("sparkles", f"{folder}{name}.jpg") for name in ("121", "12", "5"))
    assert [round_.images for round_ in record.rounds] == [(0, 1), (2,)]
    assert record.groups == (("naming", "pick", 2),)
    assert record.rounds[0].question == (
        "Image <|image:0|> or image <|image:1|>: which is larger?",
        "The <|image:0:ordinal|> image or the <|image:1:ordinal|> image: which is larger?",
    )
    assert record.rounds[0].answer == (
        "That is hard to say. Image <|image:1|> is, though image <|image:0|> is near.",
        "That is hard to say. The <|image:1:ordinal|> image is, though the <|image:0:ordinal|> image is near.",
    )
    assert (record.rounds[1].answer, record.rounds[1].answer_group) == (("Smaller than both.",), -1)


def test_an_image_that_is_listed_again_is_not_shown_again(tmp_path):
    turns = [
        turn("user", "What is IMAGE#5<Img><ImageHere></Img>?", "5"),
        turn("assistant", "A cup."),
        turn("user", "And the colour of IMAGE#5?", "5"),
        turn("assistant", "Red."),
    ]
    records, _, _ = sparkles(tmp_path, dialogue(*turns))
    assert len(records[0].images) == 1 and [round_.images for round_ in records[0].rounds] == [(0,), ()]


def test_a_dialogue_that_ends_with_a_question_loses_it_and_is_counted(tmp_path):
    turns = [turn("user", "Hello!", "5"), turn("assistant", "Good day."), turn("user", "And now?")]
    records, _, notes = sparkles(tmp_path, dialogue(*turns))
    assert texts(records[0]) == [("Hello!", "Good day.")]
    assert [note.reason for note in notes] == ["unanswered_question"]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([turn("user", "What is IMAGE#9<Img><ImageHere></Img>?", "9"), turn("assistant", "x")], "missing_image"),
        ([turn("user", "What is IMAGE#5?"), turn("assistant", "x")], "bad_row"),
        ([turn("user", "And IMAGE#77?", "5"), turn("assistant", "x")], "bad_row"),
        ([turn("user", "What?", "../5"), turn("assistant", "x")], "unsafe_path"),
        ([turn("user", "What?", "5"), turn("user", "x")], "bad_row"),
        ([turn("assistant", "What?", "5"), turn("user", "x")], "bad_row"),
        ([turn("user", "What?", "5")], "bad_row"),
        ([turn("user", "What?", "5"), turn("assistant", " ")], "empty_text"),
        ([turn("user", "<Img><ImageHere></Img>", "5"), turn("assistant", "x")], "empty_text"),
        ([{"role": "user", "content": "What?", "images": "5"}, turn("assistant", "x")], "bad_row"),
        ([{"role": "user", "content": None, "images": []}, turn("assistant", "x")], "bad_row"),
        ([turn("user", "What is <|image:0|>?", "5"), turn("assistant", "x")], "reserved_text"),
        ([], "bad_row"),
    ],
)
def test_a_dialogue_that_cannot_be_used_is_a_reason(tmp_path, turns, reason):
    records, dropped, _ = sparkles(tmp_path, dialogue(*turns))
    assert [record.id for record in records] == ["SparklesDialogueVG-0"]
    assert [item.reason for item in dropped] == [reason]
