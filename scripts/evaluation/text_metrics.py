"""Free text against references: ROUGE-L, BLEU, chrF, and how likely the reference is.

The first three come from the packages whose numbers others report: `rouge-score` and `sacrebleu`. BLEU and chrF are
those of the whole suite, not means over answers; ROUGE-L is a mean, its best reference counting.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from scripts.evaluation.metric_registry import Vectors, best_of, metric
from scripts.evaluation.turns import Turn


@metric("rouge_l")
def rouge_l(turns: Sequence[Turn], *, use_stemmer: bool = False) -> Vectors:
    """F-measure of the longest common subsequence of words (Lin 2004), between 0 and 1."""
    scorer = _rouge(use_stemmer)
    return best_of(lambda output, reference: scorer.score(reference, output)["rougeL"].fmeasure)(turns)


def _bleu_value(total: np.ndarray) -> float:
    return _sacre("BLEU")._compute_score_from_stats(total.astype(int).tolist()).score


def _chrf_value(total: np.ndarray) -> float:
    return _sacre("CHRF")._compute_score_from_stats(total.astype(int).tolist()).score


@metric("bleu", value=_bleu_value)
def bleu(turns: Sequence[Turn]) -> Vectors:
    """BLEU of the suite (Papineni et al. 2002), 0 to 100, with sacrebleu's own tokenizer (13a) and smoothing (exp)."""
    return _statistics(_sacre("BLEU"), turns)


@metric("chrf", value=_chrf_value)
def chrf(turns: Sequence[Turn]) -> Vectors:
    """chrF2 of the suite (Popovic 2015): F-score of character 1- to 6-grams, 0 to 100."""
    return _statistics(_sacre("CHRF"), turns)


def _statistics(scorer: Any, turns: Sequence[Turn]) -> Vectors:
    """Counts that add up over answers. sacrebleu keeps them for its own resampling, under a name with an underscore; a
    test compares their sum with its public score."""
    return [
        tuple(map(float, scorer._extract_corpus_statistics([turn.output], [[text] for text in turn.references])[0]))
        if turn.references
        else None
        for turn in turns
    ]


@cache
def _sacre(name: str) -> Any:
    from sacrebleu import metrics

    return metrics.BLEU(force=True) if name == "BLEU" else metrics.CHRF()


@cache
def _rouge(use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=use_stemmer)


def _perplexity(total: np.ndarray) -> float:
    # Beyond 700 the exponential leaves the range of floating point.
    return math.exp(min(float(total[0] / total[1]), 700.0)) if total[1] else float("nan")


@metric("perplexity", value=_perplexity, higher_is_better=False, needs="answer_loss")
def perplexity(turns: Sequence[Turn]) -> Vectors:
    """Perplexity of the first reference per token, its end included; every token weighs the same."""
    return [tuple(map(float, turn.answer_loss)) if turn.answer_loss else None for turn in turns]
