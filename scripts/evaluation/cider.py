"""CIDEr-D: agreement of a caption with several references, weighted by how telling their n-grams are.

Vedantam, Zitnick and Parikh 2015. An n-gram's weight is its count times log(M / d): M captions' images, in the
references of d of which it occurs. For each n from 1 to 4 the output's weights, none above the reference's, are
multiplied with the reference's and divided by the two lengths (a cosine), times exp(-(l - r)^2 / 2 sigma^2) for lengths
of l and r words, sigma = 6. The score is ten times the mean over references and n.

The weights come from the references of the whole suite: a suite of one image has no telling n-grams and scores 0. Texts
are cut into words by `words`, lower case without punctuation; the published COCO scores use a tokenizer written in
Java, whose words differ in rare cases (hyphens, quotes).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from scripts.evaluation.metric_registry import Vectors, metric
from scripts.evaluation.turns import Turn

ORDERS, SIGMA = 4, 6.0
_WORD = re.compile(r"[\w]+(?:'[\w]+)?")


def words(text: str) -> list[str]:
    """The words of a caption."""
    return _WORD.findall(text.lower())


def cider_d(outputs: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """The score of every image.

    Args:
        outputs: the words of each image's caption.
        references: for each image, the words of each of its references; at least one.
    """
    grams = [[_grams(text) for text in texts] for texts in references]
    frequency = Counter(gram for texts in grams for gram in set().union(*texts))
    log_images = math.log(len(references))
    weight = {gram: log_images - math.log(count) for gram, count in frequency.items()}

    def vector(counts: Counter) -> list[dict[tuple, float]]:
        parts: list[dict[tuple, float]] = [{} for _ in range(ORDERS)]
        for gram, count in counts.items():
            parts[len(gram) - 1][gram] = count * weight.get(gram, log_images)
        return parts

    scores = []
    for output, texts, counted in zip(outputs, references, grams, strict=True):
        own = vector(_grams(output))
        lengths = np.array([_norm(part) for part in own])
        total = np.zeros(ORDERS)
        for text, counts in zip(texts, counted, strict=True):
            other = vector(counts)
            norms = lengths * [_norm(part) for part in other]
            products = np.array([_clipped_product(mine, theirs) for mine, theirs in zip(own, other, strict=True)])
            near = math.exp(-((len(output) - len(text)) ** 2) / (2 * SIGMA**2))
            total += near * np.divide(products, norms, out=np.zeros(ORDERS), where=norms > 0)
        scores.append(10.0 * float(total.mean()) / len(texts))
    return scores


def _grams(text: Sequence[str]) -> Counter:
    return Counter(tuple(text[start : start + n]) for n in range(1, ORDERS + 1) for start in range(len(text) - n + 1))


def _norm(part: dict[tuple, float]) -> float:
    return math.sqrt(sum(value * value for value in part.values()))


def _clipped_product(mine: dict[tuple, float], theirs: dict[tuple, float]) -> float:
    return sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)


@metric("cider")
def cider(turns: Sequence[Turn]) -> Vectors:
    """Mean CIDEr-D. Intervals and tests take the weights of n-grams as given."""
    judged = [turn for turn in turns if turn.references]
    outputs = [words(turn.output) for turn in judged]
    scores = iter(cider_d(outputs, [[words(text) for text in turn.references] for turn in judged]) if judged else [])
    return [(next(scores), 1.0) if turn.references else None for turn in turns]
