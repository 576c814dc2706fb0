"""CIDEr-D: agreement of a caption with several references, with n-grams weighted by TF-IDF.

Vedantam, Zitnick and Parikh 2015. An n-gram's weight is its count times log(M / d), where M is the number of images and
d the number of images whose references contain it. For each n from 1 to 4 the output's weights, clipped to the
reference's, are multiplied with the reference's and divided by the norms of both (a cosine), times
exp(-(l - r)^2 / 2 sigma^2) for l and r words and sigma = 6. The score is ten times the mean over references and n.

The weights come from the references of the whole suite, so a suite of one image scores 0. Texts are split by `words`:
lower case without punctuation. The published COCO scores use a tokenizer written in Java, whose words differ in rare
cases (hyphens, quotes).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from scripts.evaluation.metric_registry import Vectors, metric
from scripts.evaluation.turns import Turn

MAX_N, SIGMA = 4, 6.0
_WORD = re.compile(r"[\w]+(?:'[\w]+)?")


def words(text: str) -> list[str]:
    """The words of a caption."""
    return _WORD.findall(text.lower())


def cider_d(outputs: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """The score of every image, from 0 to 10.

    Args:
        outputs: the words of each image's caption.
        references: for each image, the words of each of its references; at least one.
    """
    grams = [[_grams(text) for text in texts] for texts in references]
    frequency = Counter(gram for texts in grams for gram in set().union(*texts))
    log_images = math.log(len(references))
    weight = {gram: log_images - math.log(count) for gram, count in frequency.items()}

    def weights(counts: Counter) -> list[dict[tuple, float]]:
        parts: list[dict[tuple, float]] = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            parts[len(gram) - 1][gram] = count * weight.get(gram, log_images)
        return parts

    scores = []
    for output, texts, text_grams in zip(outputs, references, grams, strict=True):
        output_weights = weights(_grams(output))
        output_norms = np.array([_norm(part) for part in output_weights])
        total = np.zeros(MAX_N)
        for text, counts in zip(texts, text_grams, strict=True):
            text_weights = weights(counts)
            norms = output_norms * [_norm(part) for part in text_weights]
            pairs = zip(output_weights, text_weights, strict=True)
            products = np.array([_clipped_product(mine, theirs) for mine, theirs in pairs])
            length_penalty = math.exp(-((len(output) - len(text)) ** 2) / (2 * SIGMA**2))
            total += length_penalty * np.divide(products, norms, out=np.zeros(MAX_N), where=norms > 0)
        scores.append(10.0 * float(total.mean()) / len(texts))
    return scores


def _grams(text: Sequence[str]) -> Counter:
    return Counter(tuple(text[start : start + n]) for n in range(1, MAX_N + 1) for start in range(len(text) - n + 1))


def _norm(part: dict[tuple, float]) -> float:
    return math.sqrt(sum(value * value for value in part.values()))


def _clipped_product(mine: dict[tuple, float], theirs: dict[tuple, float]) -> float:
    return sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)


@metric("cider")
def cider(turns: Sequence[Turn]) -> Vectors:
    """Mean CIDEr-D. Intervals and tests treat the weights of n-grams as fixed."""
    scored = [turn for turn in turns if turn.references]
    outputs = [words(turn.output) for turn in scored]
    scores = iter(cider_d(outputs, [[words(text) for text in turn.references] for turn in scored]) if scored else [])
    return [(next(scores), 1.0) if turn.references else None for turn in turns]
