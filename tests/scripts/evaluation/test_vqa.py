"""VQA soft accuracy, against the published rule and values worked out by hand."""

import pytest

from scripts.evaluation.vqa import normalise_vqa, vqa_accuracy, vqa_score
from tests.scripts.evaluation.turn_factory import points, turn


@pytest.mark.parametrize(
    ("same", "expected"),
    # Leaving out one of the n annotators who agree leaves n - 1, leaving out another leaves n.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_the_score_grows_with_the_number_of_agreeing_annotators(same, expected):
    others = [f"other {number}" for number in range(10 - same)]
    assert vqa_accuracy("cat", ["cat"] * same + others) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red Ball", "red ball"),
        ("the two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("wed", "wed"),
        ("shes", "shes"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("10.5", "10.5"),
        ("yes.", "yes"),
        ("u.s.a", "usa"),
        ("1,000", "1000"),
        ("half-full", "half full"),
        ("left - right", "left right"),
        ("somebody'd", "somebodyd"),
    ],
)
def test_normaliser(text, expected):
    assert normalise_vqa(text) == expected


def test_answers_are_not_normalised_if_all_annotators_agree():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1.0


def test_the_metric():
    assert points(vqa_score([turn("cat", *["cat"] * 3, "dog"), turn("cat")])) == [
        pytest.approx((3 * 2 / 3 + 1) / 4),
        None,
    ]
