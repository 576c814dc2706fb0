"""Held-out answers as free text: which questions are closed, scores by dataset, intervals over conversations."""

import pytest

from scripts.evaluation.free_text import is_closed, loss_row, score_datasets
from tests.scripts.evaluation.turn_factory import turn

LONG = "The cat sleeps on a red cushion by the window."


@pytest.mark.parametrize(
    ("references", "closed"),
    [
        (["red", "two dogs", "Yes.", "no"], True),
        (["red", "two dogs", "Yes.", "no", LONG], True),
        (["red", "two dogs", LONG], False),
        ([LONG], False),
        (["红色的车停在门口"], False),
        (["红色"], True),
        ([], False),
    ],
)
def test_questions_with_short_references_are_closed(references, closed):
    assert is_closed(references) == closed


def answers(dataset, *pairs, **more):
    return [
        turn(output, reference, test=f"{dataset}:{number}", dataset=dataset, correct=False, **more)
        for number, (output, reference) in enumerate(pairs)
    ]


def test_each_dataset_is_scored_by_itself():
    colours = answers("colours", ("Red.", "red"), ("blue", "green"))
    captions = answers("captions", (LONG, LONG), ("A cat on a cushion.", LONG))
    kinds = answers("miniature", ("x", "y"))
    mixed = [colours[0], captions[0], kinds[0], colours[1], captions[1]]
    turns, rows = score_datasets(mixed, {"colours": True, "captions": False}, 0.95)
    assert [turn.correct for turn in turns] == [True, None, False, False, None]
    assert turns[2] is kinds[0] and [turn.test for turn in turns] == [turn.test for turn in mixed]
    assert list(rows) == ["captions", "colours"]
    assert list(rows["colours"]["metrics"]) == ["exact_match", "token_f1", "rouge_l", "chrf"]
    assert list(rows["captions"]["metrics"]) == ["token_f1", "rouge_l", "chrf"]
    exact, f1 = rows["colours"]["metrics"]["exact_match"], rows["captions"]["metrics"]["token_f1"]
    assert (exact["value"], exact["n"], exact["method"]) == (0.5, 2, "wilson")
    # "cat cushion on" of 3 and 7 words without articles: 2 * 3 / 10.
    assert f1["value"] == pytest.approx((1 + 0.6) / 2) and f1["method"] == "bootstrap"
    assert f1["interval"] == pytest.approx([0.6, 1])
    assert turns[4].scores["token_f1"] == pytest.approx(0.6) and turns[2].scores == {}


def test_blanked_images_have_a_value_beside():
    blanked = {"blanked": {"output": "blue", "correct": False}}
    _, rows = score_datasets(answers("own", ("red", "red"), shown=[1], **blanked), {"own": True}, 0.95)
    assert rows["own"]["metrics"]["exact_match"]["blanked"] == 0.0
    _, rows = score_datasets(answers("own", ("red", "red"), **blanked), {"own": True}, 0.95)
    assert "blanked" not in rows["own"]["metrics"]["exact_match"], "there are no images"


def test_the_loss_has_an_interval_over_conversations():
    row = loss_row([(2.0, 4), (9.0, 6), (1.0, 2)], 0.95)
    assert row["loss"] == 1.0 and row["interval"][0] >= 0.5 and row["interval"][1] <= 1.5
    assert loss_row([(2.0, 4)], 0.95)["interval"] is None and loss_row([], 0.95) is None
