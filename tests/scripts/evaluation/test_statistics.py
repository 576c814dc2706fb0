"""Exact match and intervals, against values worked out by hand and values of the papers that define them."""

import pytest

from scripts.evaluation.statistics import (
    is_correct,
    majority_accuracy,
    normalise,
    paired_difference,
    summarise,
    wilson,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A red circle.", "a red circle"),
        ("  A\n red   circle ", "a red circle"),
        ("Yes!!", "yes"),
        ("two .", "two"),
        ("Dr. No", "dr. no"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_normalise(answer, expected):
    assert normalise(answer) == expected


def test_is_correct_accepts_any_reference_and_nothing_else():
    assert is_correct("TWO.", ["2", "two"])
    assert not is_correct("two circles", ["2", "two"])
    assert not is_correct("", ["?"])
    assert not is_correct("two", [])


def test_majority_accuracy_counts_normalised_answers():
    assert majority_accuracy(["Red.", "red", "blue", "green"]) == 0.5


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_against_published_values(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_narrows_with_lower_confidence():
    wide, narrow = wilson(8, 10, 0.99), wilson(8, 10, 0.5)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]


def pairs(both: int, first_only: int, second_only: int, neither: int) -> list[tuple[bool, bool]]:
    table = ((True, True), both), ((True, False), first_only), ((False, True), second_only), ((False, False), neither)
    return [pair for pair, count in table for _ in range(count)]


@pytest.mark.parametrize(
    ("table", "difference", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),  # Newcombe 1998, Statistics in Medicine 17:2635, method 10
        ((20, 12, 2, 16), 0.2, 0.0562, 0.3292),
        ((1, 1, 7, 12), -0.2857, -0.5069, -0.0256),
        ((0, 500, 0, 0), 1.0, 0.9892, 1.0),
    ],
)
def test_paired_difference_against_published_values(table, difference, low, high):
    value, interval = paired_difference(pairs(*table))
    assert value == pytest.approx(difference, abs=5e-5)
    assert interval == pytest.approx((low, high), abs=5e-5)


def test_summarise_with_blanked_images():
    row = summarise([True, True, True, False], 0.5, [True, False, False, False])
    assert (row["n"], row["correct"], row["accuracy"], row["chance"]) == (4, 3, 0.75, 0.5)
    assert row["interval"] == list(wilson(3, 4))
    assert row["blanked"] == {"correct": 1, "accuracy": 0.25, "interval": list(wilson(1, 4))}
    assert row["drop"]["value"] == 0.5


def test_summarise_without_blanked_images_and_without_questions():
    assert "blanked" not in summarise([True], 1.0, None)
    assert summarise([], None, [])["accuracy"] is None
