"""Metrics of several images and rounds, against values worked out by hand."""

import pytest

from scripts.evaluation.multi_image_metrics import (
    all_versions,
    consistency,
    image_numbers,
    order_sensitivity,
    recall,
    rounds_ago,
    which_image,
)
from tests.scripts.evaluation.turn_factory import points, turn


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("The second image.", {2}),
        ("image 1", {1}),
        ("IMAGE#3 shows it", {3}),
        ("the first and second images", {1, 2}),
        ("Images 1 and the third picture", {1, 3}),
        ("The first.", {1}),
        ("the last one", {3}),
        ("two red circles", set()),
        ("first of all, no", set()),
        ("image 7", set()),
    ],
)
def test_image_numbers(text, numbers):
    assert image_numbers(text, 3) == numbers


def test_which_image_applies_only_to_references_that_name_an_image():
    shown = [1, 1]
    turns = [
        turn("Image 2", "The second image.", shown=shown),
        turn("The first image.", "The second image.", shown=shown),
        turn("both", "The second image.", shown=shown),
        turn("yes", "yes", shown=shown),
        turn("The first image."),
    ]
    assert points(which_image(turns)) == [1.0, 0.0, 0.0, None, None]


def test_how_long_ago_the_image_in_question_was_shown():
    assert rounds_ago(turn("x", shown=[1], number=1)) == 0
    assert rounds_ago(turn("x", shown=[1, 2], number=4)) == 2
    assert rounds_ago(turn("x", shown=[1, 2], number=4, question="In the first image, what is red?")) == 3
    assert rounds_ago(turn("x", shown=[1, 2, 3], number=4, question="Do images 2 and 3 differ? Image 2 has more.")) == 2
    assert rounds_ago(turn("x", shown=[1, 2], number=4, question="Is image 2 like image 1?")) == 3
    assert rounds_ago(turn("x")) is None


def test_recall_by_round():
    turns = [
        turn("red", "red", test="a", shown=[1], number=1),
        turn("two", "three", test="a", shown=[1], number=2),
        turn("red", "red", test="a", shown=[1, 3], number=3, question="What is in image 1?"),
        turn("five", "five", test="a"),
    ]
    found = recall(turns)
    assert {name: points(vectors) for name, vectors in found.items()} == {
        "@0": [1.0, None, None, None],
        "@1": [None, 0.0, None, None],
        "@2": [None, None, 1.0, None],
    }


def test_versions_of_a_question():
    turns = [
        turn("the first image", "the first image", test="a1", cluster="a"),
        turn("the first image", "the second image", test="a2", cluster="a"),
        turn("red", "red", test="b1", cluster="b"),
        turn("Red.", "red", test="b2", cluster="b"),
        turn("blue", "green", test="c1", cluster="c"),
        turn("red", "red", test="d1", cluster="d"),
        turn("red", "red", test="alone"),
    ]
    assert points(order_sensitivity(turns)) == [1.0, None, 0.0, None, None, None, None]
    assert points(all_versions(turns)) == [0.0, None, 1.0, None, None, None, None]
    assert points(consistency(turns)) == [1.0, None, 1.0, None, None, None, None]


def test_consistency_counts_pairs_and_needs_no_references():
    turns = [turn(output, test=f"a{index}", cluster="a") for index, output in enumerate(("red", "red", "blue"))]
    assert points(consistency(turns)) == [pytest.approx(1 / 3), None, None]
    assert points(order_sensitivity(turns)) == [None, None, None]


def test_versions_are_compared_round_by_round():
    rounds = [
        turn(output, test=test, number=number, cluster="a")
        for test in "xy"
        for number, output in ((1, "yes"), (2, test))
    ]
    assert points(consistency(rounds)) == [1.0, 0.0, None, None]
