"""Multiple choice by letter and by likelihood; exact match."""

import math

import pytest

from scripts.evaluation.choice_metrics import (
    accuracy,
    accuracy_per_character,
    chosen_letter,
    exact_match,
    mcq_letter,
    most_likely_choice,
)
from tests.scripts.evaluation.turn_factory import points, turn

CHOICES = ["a cat", "a dog", "a red circle", "Iceland"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", 1),
        ("(B)", 1),
        ("B. a dog", 1),
        ("C) because it is round", 2),
        ("The answer is B.", 1),
        ("answer: (c)", 2),
        ("Option D", 3),
        ("I choose (A)", 0),
        ("I think it is B", 1),
        ("A dog.", 1),
        ("a dog", 1),
        ("It is a red circle, surely.", 2),
        ("A thing I see", None),
        ("B or C", None),
        ("a cat and a dog", None),
        ("E", None),
        ("", None),
    ],
)
def test_chosen_letter(output, expected):
    assert chosen_letter(output, CHOICES) == expected


def test_choice_by_letter():
    turns = [turn("B", choices=CHOICES, target=1), turn("A", choices=CHOICES, target=1), turn("B")]
    assert points(mcq_letter(turns)) == [1.0, 0.0, None]


def test_choice_by_likelihood_with_and_without_length_normalisation():
    losses = [2.0, 3.0, 4.0, math.nan]
    assert most_likely_choice(losses, CHOICES) == 0
    assert most_likely_choice(losses, CHOICES, normalised=True) == 2
    turns = [turn("a cat", choices=CHOICES, losses=losses, target=2), turn("x", choices=CHOICES, target=2)]
    assert points(accuracy(turns)) == [0.0, None]
    assert points(accuracy_per_character(turns)) == [1.0, None]


def test_exact_match_and_its_options():
    turns = [turn("Two."), turn("Two.", "2", "two"), turn("Two", "two!"), turn("two", "Two")]
    assert points(exact_match(turns)) == [None, 1.0, 1.0, 1.0]
    assert points(exact_match(turns, ignore_case=False)) == [None, 0.0, 0.0, 0.0]
    assert points(exact_match(turns, ignore_punctuation=False)) == [None, 0.0, 0.0, 1.0]
