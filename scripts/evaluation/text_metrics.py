"""Metrics of free text against references: ROUGE-L, token F1, BLEU, chrF, and perplexity of the reference.

ROUGE-L, BLEU and chrF come from the packages that publications use, `rouge-score` and `sacrebleu`. BLEU and chrF are
corpus scores of the whole suite; ROUGE-L and token F1 are means over answers of the best reference.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from scripts.evaluation.metric_registry import Vectors, best_of, metric
from scripts.evaluation.turns import Turn

_CHRF_ORDER, _CHRF_BETA = 6, 2
_ARTICLES = {"a", "an", "the"}
# Scripts without spaces between words, of which every character counts as one: Thai, Lao, Khmer, kana, Chinese.
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    Of ASCII text these are the tokens of `rouge-score`, whose own tokenizer drops all other letters.
    """
    return _WORD.findall(text.lower())


@metric("rouge_l")
def rouge_l(turns: Sequence[Turn], *, use_stemmer: bool = False) -> Vectors:
    """F-measure of the longest common subsequence of words (Lin 2004), between 0 and 1.

    With the stemmer, which is one for English, also with the tokenizer of `rouge-score`.
    """
    scorer = _rouge(use_stemmer)
    return best_of(lambda output, reference: scorer.score(reference, output)["rougeL"].fmeasure)(turns)


def token_f1_score(output: str, reference: str) -> float:
    """F-measure of the words of two texts without their order (Rajpurkar et al. 2016), between 0 and 1."""
    ours, theirs = ([word for word in words(text) if word not in _ARTICLES] for text in (output, reference))
    if not ours or not theirs:
        return float(ours == theirs)
    both = (Counter(ours) & Counter(theirs)).total()
    return 2 * both / (len(ours) + len(theirs))


@metric("token_f1")
def token_f1(turns: Sequence[Turn]) -> Vectors:
    """F-measure of words as in SQuAD, between 0 and 1: order, articles and punctuation do not count."""
    return best_of(token_f1_score)(turns)


def _bleu_value(total: np.ndarray) -> float:
    output_length, reference_length, *counts = total.astype(int).tolist()
    matched, made = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    return _bleu().compute_bleu(matched, made, output_length, reference_length, smooth_method="exp").score


@metric("bleu", value=_bleu_value)
def bleu(turns: Sequence[Turn]) -> Vectors:
    """BLEU of the suite (Papineni et al. 2002), 0 to 100, with sacrebleu's own tokenizer (13a) and smoothing (exp)."""

    def counts(turn: Turn) -> tuple[float, ...]:
        score = _bleu().corpus_score([turn.output], [[text] for text in turn.references])
        return tuple(map(float, (score.sys_len, score.ref_len, *score.counts, *score.totals)))

    return [counts(turn) if turn.references else None for turn in turns]


def _chrf_value(total: np.ndarray) -> float:
    """F-score of the mean precision and the mean recall over all orders of which both sides have n-grams."""
    output, reference, matched = total.reshape(_CHRF_ORDER, 3).T
    both = (output > 0) & (reference > 0)
    if not matched.any():
        return 0.0
    precision, recall = np.mean(matched[both] / output[both]), np.mean(matched[both] / reference[both])
    return float(100 * ((1 + _CHRF_BETA**2) * precision * recall / (_CHRF_BETA**2 * precision + recall)))


@metric("chrf", value=_chrf_value)
def chrf(turns: Sequence[Turn]) -> Vectors:
    """chrF2 of the suite (Popovic 2015): F-score of character 1- to 6-grams, 0 to 100; the best reference counts.

    sacrebleu has the n-grams, but its score does not show the counts, which have to add up over answers.
    """
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    def counts(turn: Turn) -> tuple[float, ...]:
        output = extract_all_char_ngrams(turn.output, _CHRF_ORDER)
        references = (extract_all_char_ngrams(text, _CHRF_ORDER) for text in turn.references)
        best = max((_chrf_counts(output, reference) for reference in references), key=_chrf_value)
        return tuple(best.tolist())

    return [counts(turn) if turn.references else None for turn in turns]


def _chrf_counts(output: Sequence[Counter[str]], reference: Sequence[Counter[str]]) -> np.ndarray:
    """For each order the n-grams of the output, of the reference and of both."""
    rows = []
    for ours, theirs in zip(output, reference, strict=True):
        both = sum(min(count, theirs[gram]) for gram, count in ours.items() if gram in theirs)
        # An order without an n-gram in the reference does not count, so those of the output do not either.
        rows.append((ours.total() if theirs else 0, theirs.total(), both))
    return np.array(rows, dtype=float).ravel()


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(force=True)


class _Words:
    """`words` in the form of a tokenizer of `rouge-score`."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge(use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=use_stemmer, tokenizer=None if use_stemmer else _Words())


def _perplexity(total: np.ndarray) -> float:
    # exp(710) overflows.
    return math.exp(min(float(total[0] / total[1]), 700.0)) if total[1] else float("nan")


@metric("perplexity", value=_perplexity, higher_is_better=False, needs="answer_loss")
def perplexity(turns: Sequence[Turn]) -> Vectors:
    """Perplexity per token of the first reference, its end token included; every token has the same weight."""
    return [tuple(map(float, turn.answer_loss)) if turn.answer_loss else None for turn in turns]
