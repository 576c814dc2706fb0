"""coco_caption and aokvqa: alternatives stay alternatives."""

import pytest

from scripts.adapters.aokvqa import REASONS
from scripts.adapters.coco_caption import PROMPTS
from tests.scripts.adapters.raw_folders import IMAGES, run

CAPTIONS = "coco_caption/dataset.json"
AOKVQA = "aokvqa/annotations/aokvqa_v1p0_train.json"


def caption_row(*captions, **changes):
    sentences = [{"raw": caption, "tokens": caption.split(), "imgid": 0, "sentid": 0} for caption in captions]
    row = {"filepath": "val2014", "filename": "COCO_val2014_000000000785.jpg", "imgid": 0, "split": "train"}
    return row | {"cocoid": 785, "sentids": [], "sentences": sentences} | changes


def captions_file(*rows):
    return {CAPTIONS: {"images": list(rows), "dataset": "coco"}}


def reason_row(**changes):
    row = {"split": "train", "image_id": 785, "question_id": "q1", "question": "What is the person doing?"}
    row |= {"choices": ["skiing", "golf", "tennis", "art"], "correct_choice_idx": 0, "direct_answers": ["skiing"] * 10}
    row |= {"difficult_direct_answer": False, "rationales": ["there are skis", "Snow lies around.", "Cold!"]}
    return row | changes


def test_any_prompt_goes_with_any_caption(tmp_path):
    records, dropped, _ = run("coco_caption", tmp_path, captions_file(caption_row("a man ", "two skis", "snow")))
    (record,) = records
    assert dropped == [] and record.id == "785"
    assert record.images == (("coco", "coco/train2017/000000000785.jpg"),)
    assert record.groups == (("prompt", "pick", len(PROMPTS)), ("caption", "pick", 3))
    (round_,) = record.rounds
    assert (round_.question, round_.question_group, round_.images) == (PROMPTS, 0, (0,))
    assert (round_.answer, round_.answer_group) == (("a man", "two skis", "snow"), 1)


def test_an_image_of_val2017_is_found_there(tmp_path):
    images = [*IMAGES, "coco/val2017/000000000139.jpg"]
    records, dropped, _ = run("coco_caption", tmp_path, captions_file(caption_row("a room", cocoid=139)), images)
    assert dropped == [] and records[0].images == (("coco", "coco/val2017/000000000139.jpg"),)


def test_a_single_caption_is_no_choice(tmp_path):
    records, _, notes = run("coco_caption", tmp_path, captions_file(caption_row("a man", " ")))
    assert records[0].groups == (("prompt", "pick", len(PROMPTS)),)
    assert records[0].rounds[0].answer_group == -1
    assert [note.reason for note in notes] == ["empty_caption"]


@pytest.mark.parametrize(
    ("karpathy", "split"), [("train", "train"), ("restval", "train"), ("val", "val"), ("test", "test")]
)
def test_benchmark_images_keep_their_split(tmp_path, karpathy, split):
    records, _, _ = run("coco_caption", tmp_path, captions_file(caption_row("a man", split=karpathy)))
    assert records[0].split == split


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (caption_row("x", cocoid=12), "missing_image"),
        (caption_row("x", cocoid="785"), "bad_row"),
        (caption_row("x", split="dev"), "bad_row"),
        (caption_row("x", sentences=None), "bad_row"),
        (caption_row(), "empty_text"),
        (caption_row("x", "<|image:0|>"), "reserved_text"),
        ([], "bad_row"),
    ],
)
def test_bad_caption_rows(tmp_path, bad, reason):
    records, dropped, _ = run("coco_caption", tmp_path, captions_file(bad, caption_row("ok")))
    assert len(records) == 1 and [item.reason for item in dropped] == [reason]


def test_an_answer_states_the_choice_and_then_the_rationales(tmp_path):
    records, dropped, _ = run("aokvqa", tmp_path, {AOKVQA: [reason_row()]})
    (record,) = records
    assert dropped == [] and record.id == "q1" and record.groups == (("reason", "pick", len(REASONS)),)
    (round_,) = record.rounds
    assert round_.question == tuple(f"What is the person doing? {reason}" for reason in REASONS)
    assert round_.answer == ("The answer is skiing. There are skis. Snow lies around. Cold!",)
    assert (round_.question_group, round_.answer_group) == (0, -1)


def test_direct_answers_are_not_looked_at(tmp_path):
    row = reason_row(direct_answers="['skiing']", rationales=["Skis.", ""])
    records, _, _ = run("aokvqa", tmp_path, {AOKVQA: [row]})
    assert records[0].rounds[0].answer == ("The answer is skiing. Skis.",)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (reason_row(image_id=3), "missing_image"),
        (reason_row(image_id=True), "bad_row"),
        (reason_row(image_id=-785), "bad_row"),
        (reason_row(correct_choice_idx=4), "bad_row"),
        (reason_row(correct_choice_idx=-1), "bad_row"),
        (reason_row(correct_choice_idx=None), "bad_row"),
        (reason_row(rationales=[]), "empty_text"),
        (reason_row(question="<image>"), "empty_text"),
        (reason_row(split="dev"), "bad_row"),
        (reason_row(split="heldout"), "bad_row"),
        (3, "bad_row"),
    ],
)
def test_bad_reason_rows(tmp_path, bad, reason):
    records, dropped, _ = run("aokvqa", tmp_path, {AOKVQA: [bad, reason_row()]})
    assert len(records) == 1 and [item.reason for item in dropped] == [reason]
