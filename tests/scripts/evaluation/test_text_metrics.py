"""ROUGE-L, BLEU, chrF and perplexity, against the public scores of the packages they come from."""

import math
import random

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from scripts.evaluation.metric_registry import METRICS
from scripts.evaluation.scoring import metric_spec, score_turns
from tests.scripts.evaluation.turn_factory import turn

OUTPUTS = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]
SHIFTED = ["The dog bit the cat.", "It was unexpected.", "A man bit him."]


def value(name: str, outputs: list[str], references: list[list[str]] = REFERENCES) -> float:
    turns = [turn(output, *texts) for output, texts in zip(outputs, references, strict=True)]
    return score_turns(turns, [metric_spec(name)], 0.95)[1][name]["value"]


@pytest.mark.parametrize("outputs", [OUTPUTS, SHIFTED])
def test_bleu_and_chrf_are_the_public_corpus_scores(outputs):
    streams = [list(stream) for stream in zip(*REFERENCES, strict=True)]
    assert value("bleu", outputs) == pytest.approx(sacrebleu.corpus_bleu(outputs, streams).score, abs=1e-9)
    assert value("chrf", outputs) == pytest.approx(sacrebleu.corpus_chrf(outputs, streams).score, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_texts_have_the_public_corpus_scores(seed):
    """Empty and short texts, signs, other scripts, references of different numbers and texts without a match."""
    draw = random.Random(seed)
    words = ["The", "dog", "bit", "man,", "is.", "not!", "Don't", "1,000", "3.5", "über", "狗", "(x)", "—", ""]

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.choice([0, 1, 2, 3, 8, 20])))

    references = [[text() for _ in range(draw.randint(1, 3))] for _ in range(40)]
    outputs = [draw.choice(texts)[draw.randint(0, 2) :] if draw.random() < 0.5 else text() for texts in references]
    streams = [[texts[number] if number < len(texts) else None for texts in references] for number in range(3)]
    turns = [turn(output, *texts) for output, texts in zip(outputs, references, strict=True)]
    for name in ("bleu", "chrf"):
        vectors = METRICS[name].vectors(turns, {})[name]
        public = getattr(sacrebleu, f"corpus_{name}")(outputs, streams).score
        assert METRICS[name].value(np.sum(vectors, axis=0)) == public
    for output, texts, vector in zip(outputs, references, vectors, strict=True):
        assert METRICS["chrf"].value(np.array(vector)) == sacrebleu.sentence_chrf(output, texts).score


def test_published_bleu():
    # The example of sacrebleu's own documentation, where the score is given as 48.53.
    outputs = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    assert value("bleu", outputs, references) == pytest.approx(48.53, abs=0.005)


def test_answers_may_have_different_numbers_of_references():
    uneven = [REFERENCES[0], REFERENCES[1][:1], REFERENCES[2][:1]]
    streams = [[texts[0] for texts in uneven], [uneven[0][1], None, None]]
    assert value("bleu", SHIFTED, uneven) == pytest.approx(sacrebleu.corpus_bleu(SHIFTED, streams).score, abs=1e-9)


def test_rouge_takes_the_best_reference():
    scorer = RougeScorer(["rougeL"])
    best = [
        max(scorer.score(text, output)["rougeL"].fmeasure for text in texts)
        for output, texts in zip(SHIFTED, REFERENCES, strict=True)
    ]
    assert value("rouge_l", SHIFTED) == pytest.approx(np.mean(best))
    assert value("rouge_l", OUTPUTS) == 1.0


def test_rouge_against_a_value_worked_out_by_hand():
    # Longest common subsequence "police the gunman" of 4 and 4 words (Lin 2004, section 3): 3/4 = 0.75.
    assert value("rouge_l", ["police kill the gunman"], [["police killed the gunman"]]) == 0.75


@pytest.mark.parametrize(
    ("output", "reference", "expected"),
    [
        ("A red car.", "the red car", 1.0),
        ("red car", "Car, red!", 1.0),
        ("red", "a red car", 2 / 3),
        ("red red", "red car", 0.5),
        ("blue", "red", 0.0),
        ("the", "a", 1.0),
        ("", "red", 0.0),
        ("Ein kühler Morgen", "ein kühler Abend", 2 / 3),
        ("红色的车", "红色的船", 0.75),
    ],
)
def test_token_f1_against_values_worked_out_by_hand(output, reference, expected):
    assert value("token_f1", [output], [[reference]]) == pytest.approx(expected)


def test_rouge_counts_letters_of_all_scripts():
    """The tokenizer of rouge-score knows a to z only, so that a correct answer in Chinese would score 0."""
    assert value("rouge_l", ["红色的车"], [["红色的船"]]) == pytest.approx(0.75)
    assert value("rouge_l", ["Süße Äpfel"], [["süße Äpfel"]]) == 1.0
    assert value("rouge_l", ["né"], [["ni"]]) == 0.0


def test_perplexity_is_weighted_by_tokens():
    turns = [turn("a", answer_loss=(2.0, 1)), turn("b", answer_loss=(1.0, 9)), turn("c")]
    scored, rows = score_turns(turns, [metric_spec("perplexity")], 0.95)
    assert rows["perplexity"]["value"] == pytest.approx(math.exp(3 / 10)) and rows["perplexity"]["n"] == 2
    assert scored[0].scores["perplexity"] == pytest.approx(math.exp(2)) and scored[2].scores == {}
    assert not METRICS["perplexity"].higher_is_better
