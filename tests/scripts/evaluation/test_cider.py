"""CIDEr-D, against values of the published COCO caption evaluation and against its definition."""

import math
import random

import pytest

from scripts.evaluation.cider import cider, cider_d, words
from tests.scripts.evaluation.turn_factory import points, turn

REFERENCES = [
    ["a red circle on a table", "a circle that is red"],
    ["two dogs run on the grass", "two dogs are running", "the dogs run in a green field"],
    ["a man rides a horse on the beach", "a man on a horse"],
]
OUTPUTS = [
    "a red circle",
    "two dogs run in the field field",
    "a woman rides a brown horse on the beach at night",
]
# pycocoevalcap 1.2, CiderScorer(n=4, sigma=6.0), on these texts cut at spaces.
PUBLISHED = [3.0554462517876626, 2.3668203850070317, 1.774177523399401]


def test_values_of_the_published_evaluation():
    scores = cider_d([text.split() for text in OUTPUTS], [[text.split() for text in texts] for texts in REFERENCES])
    assert scores == pytest.approx(PUBLISHED, rel=1e-12)


def definition(outputs, references) -> list[float]:
    """The paper's formula, one n-gram at a time, over the whole space of n-grams."""

    def count(text, gram):
        return sum(tuple(text[start : start + len(gram)]) == gram for start in range(len(text)))

    def frequency(gram):
        return sum(any(count(text, gram) for text in texts) for texts in references)

    def weight(text, gram):
        return count(text, gram) * (math.log(len(references)) - math.log(max(1, frequency(gram))))

    scores = []
    for output, texts in zip(outputs, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            for text in texts:
                space = {tuple(each[s : s + n]) for each in (output, text) for s in range(len(each) - n + 1)}
                mine, theirs = [[weight(each, gram) for gram in space] for each in (output, text)]
                product = sum(min(one, other) * other for one, other in zip(mine, theirs, strict=True))
                norm = math.hypot(*mine) * math.hypot(*theirs)
                total += math.exp(-((len(output) - len(text)) ** 2) / 72) * (product / norm if norm else 0) / len(texts)
        scores.append(10 * total / 4)
    return scores


def test_equals_the_definition_on_random_texts():
    generator = random.Random(7)

    def text():
        return generator.choices(["a", "the", "red", "dog", "runs", "on", "grass", "in"], k=generator.randint(1, 9))

    for _ in range(40):
        references = [[text() for _ in range(generator.randint(1, 4))] for _ in range(generator.randint(2, 6))]
        outputs = [text() for _ in references]
        assert cider_d(outputs, references) == pytest.approx(definition(outputs, references), abs=1e-12)


def test_as_a_metric_over_texts():
    turns = [turn(output, *texts) for output, texts in zip(OUTPUTS, REFERENCES, strict=True)]
    assert points(cider([*turns, turn("no reference")])) == [*map(pytest.approx, PUBLISHED), None]
    assert cider([turn("no reference")]) == [None]
    assert words("A dog's ball, well-worn.") == ["a", "dog's", "ball", "well", "worn"]
