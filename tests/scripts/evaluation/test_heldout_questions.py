"""Held-out conversations as questions: one prompt per round, with the reference answers before it."""

from dataclasses import replace

from scripts.evaluation.heldout_questions import questions
from scripts.evaluation.question_kinds import QuestionKind
from scripts.inference.blend_reader import Sample


def user(text: str, *images: int) -> dict:
    parts = [{"type": "image", "index": index} for index in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


SAMPLE = Sample(
    uids=["llava:1", "cgd:2"],
    dataset="join",
    messages=[user("One?", 0), assistant("1"), user("Two?", 1, 2), assistant("2"), user("Again?"), assistant("3")],
    images=[b"a", b"b", b"c"],
    image_sha256=["aa", "bb", "cc"],
    n_tokens=0,
    n_labels=0,
    position=7,
)


def test_every_round_is_a_question_with_its_reference_history():
    first, second, third = questions(4, SAMPLE, [])
    assert (first.unit, first.round, second.round, third.round) == (4, 1, 2, 3)
    assert (first.question, first.reference) == ("One?", "1")
    assert second.messages == SAMPLE.messages[:3] and second.reference == "2"
    assert [q.images for q in (first, second, third)] == [("aa",), ("aa", "bb", "cc"), ("aa", "bb", "cc")]
    assert [q.new_images for q in (first, second, third)] == [1, 2, 0]
    assert first.test == "llava:1+cgd:2" and first.gallery == ("aa", "bb", "cc")


def test_without_kinds_the_group_follows_from_the_number_of_images():
    several = QuestionKind("join", "several")
    assert [q.kind for q in questions(0, SAMPLE, [])] == [QuestionKind("join", "one"), several, several]
    listed = [QuestionKind("again", "one", False, "^Again"), QuestionKind("rest", "several", True, ".")]
    assert [q.kind.name for q in questions(0, SAMPLE, listed)] == ["rest", "rest", "again"]


def test_a_round_that_is_not_supervised_is_history_and_no_question():
    shown_only = [SAMPLE.messages[0], SAMPLE.messages[1] | {"supervised": False}, *SAMPLE.messages[2:]]
    found = list(questions(0, replace(SAMPLE, messages=shown_only), []))
    assert [(q.round, q.question, len(q.messages)) for q in found] == [(2, "Two?", 3), (3, "Again?", 5)]
    assert found[0].images == ("aa", "bb", "cc")


def test_kinds_are_not_about_every_dataset():
    kinds = [QuestionKind("any", "several", True, ".")]
    assert {q.kind.name for q in questions(0, SAMPLE, kinds, ["other"])} == {"any"}
    assert {q.kind.name for q in questions(0, SAMPLE, kinds, ["join"])} == {"join"}


def test_rounds_that_are_not_supervised_are_context_and_images_in_their_places_are_named():
    pieces = [{"type": "text", "text": "Is "}, {"type": "image", "index": 1}, {"type": "text", "text": " older?"}]
    messages = [user("One?", 0), assistant("1") | {"supervised": False}, {"role": "user", "content": pieces}]
    sample = replace(SAMPLE, messages=[*messages, assistant("No.")])
    (only,) = questions(4, sample, [])
    assert (only.round, only.question, only.reference) == (2, "Is image 2 older?", "No.")
    assert only.images == ("aa", "bb") and only.new_images == 1 and only.messages == sample.messages[:3]
