"""The numbers of kinds and groups against values worked out by hand, and the result files."""

import csv
import json

import pytest

from scripts.evaluation.heldout_questions import Question
from scripts.evaluation.question_kinds import OTHER, QuestionKind
from scripts.evaluation.results import summarise_heldout, summarise_suite, write_turns
from scripts.evaluation.statistics import wilson
from scripts.evaluation.turns import Turn

COLOUR, SHAPE = QuestionKind("colour", "one", True, "colour"), QuestionKind("shape", "one", True, "shape")
MORE, CAPTION = QuestionKind("more", "several", True, "more"), QuestionKind("caption", "one", False, "describe")


def turn(reference: str, correct: bool | None, blanked: bool = False, **fields) -> Turn:
    defaults = {"test": "t", "round": 1, "question": "q?", "prompt": "p", "images": [], "new_images": 0, "output": "o"}
    blanked_answer = {"output": "", "correct": blanked}
    return Turn(**defaults | {"references": [reference], "correct": correct, "blanked": blanked_answer} | fields)


def answered(kind: QuestionKind, *answers: tuple[str, bool, bool]) -> list[tuple[Question, Turn]]:
    return [
        (Question(0, "t", 1, "llava", "q?", [], (), 0, (), reference, kind), turn(reference, correct, blanked))
        for reference, correct, blanked in answers
    ]


PAIRS = [
    *answered(SHAPE, ("circle", True, False), ("cross", True, True)),
    *answered(COLOUR, *[("red", True, True)] * 3, *[("blue", False, False)] * 3),
    *answered(MORE, ("image 1", True, False)),
    *answered(OTHER, ("so", False, False)),
]


def test_kinds_and_groups():
    result = summarise_heldout(PAIRS, [COLOUR, CAPTION, SHAPE, MORE], 0.95)
    assert [kind["name"] for kind in result["kinds"]] == ["colour", "shape", "more", "other"]
    colour, shape, more, other = result["kinds"]
    assert (colour["n"], colour["correct"], colour["chance"]) == (6, 3, 0.5)
    assert (shape["n"], shape["correct"], shape["chance"], shape["blanked"]["correct"]) == (2, 2, 0.5, 1)
    assert more["chance"] == 1.0 and other["images"] is None

    one = result["groups"]["one"]
    assert (one["n"], one["correct"], one["accuracy"]) == (8, 5, 5 / 8)
    assert one["interval"] == list(wilson(5, 8))
    assert one["chance"] == pytest.approx((6 * 0.5 + 2 * 0.5) / 8)
    assert one["blanked"]["correct"] == 4 and one["drop"]["value"] == pytest.approx(1 / 8)
    assert result["groups"]["several"]["n"] == 1


def test_the_chance_level_of_a_group_is_weighted_by_questions():
    pairs = answered(COLOUR, *[("red", True, True)] * 9) + answered(
        SHAPE, ("circle", True, True), ("cross", True, True)
    )
    one = summarise_heldout(pairs, [COLOUR, SHAPE], 0.95)["groups"]["one"]
    assert one["chance"] == pytest.approx((9 * 1 + 2 * 0.5) / 11)


def test_without_questions():
    result = summarise_heldout([], [COLOUR], 0.95)
    assert result["kinds"][0]["n"] == result["groups"]["one"]["n"] == 0


def test_suites_count_only_scored_rounds():
    turns = [turn("a", True), turn("", None, round=2), turn("b", False, test="u")]
    result = summarise_suite(turns, 0.95)
    assert (result["n"], result["correct"]) == (2, 1)
    assert result["tests"] == [
        {"name": "t", "rounds": 2, "judged": 1, "correct": 1},
        {"name": "u", "rounds": 1, "judged": 1, "correct": 0},
    ]


def test_files_of_turns(tmp_path):
    images = [{"path": name, "sha256": "0" * 64} for name in ("a.png", "b c.png", "d.png")]
    turns = [turn("x", None, question='say "hi",\nplease', output="né", images=images, new_images=2)]
    write_turns(tmp_path, "final", turns, {"suite": "talk"})
    with open(tmp_path / "final.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1] == ["t", '"b c.png" d.png', 'say "hi",\nplease', "né"]
    line = json.loads((tmp_path / "final.jsonl").read_text(encoding="utf-8"))
    assert line["suite"] == "talk" and line["correct"] is None and "dataset" not in line
