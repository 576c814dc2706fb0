"""VQA soft accuracy: an answer scores by how many annotators gave the same answer.

With the answers of (usually ten) annotators, an output scores min(n / 3, 1), where n annotators gave it, averaged over
all ways of leaving one annotator out (Antol et al. 2015; the evaluation code of the VQA challenge). If annotators
disagree, output and answers are normalised first: punctuation, number words, articles, and missing apostrophes.

`normalise_vqa` reproduces the published code with two oddities, so that scores are comparable: a period is removed
unless a digit follows it, whatever precedes it, and only the first 32 are removed.
"""

import re
from collections.abc import Sequence

from scripts.evaluation.metric_registry import Vectors, metric
from scripts.evaluation.turns import Turn

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"\d,\d")
_PERIODS_DROPPED = 32
_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}

# Words whose missing apostrophe is restored; without those that are other words without it, such as "wed".
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 (a list literal of 120 words is harder to read)
# These have capitals in the published list and therefore never match a lower-case word.
_NEVER_MATCHED = {"i'd've", "i'm", "i've"}


def _with_apostrophe() -> dict[str, str]:
    """Maps each contraction with one missing apostrophe to its correct spelling."""
    spellings = {"somebody'd": "somebodyd"}  # reversed in the published list
    for word in set(_CONTRACTIONS) - _NEVER_MATCHED:
        for index in [index for index, letter in enumerate(word) if letter == "'"]:
            spellings[word[:index] + word[index + 1 :]] = word
    return spellings


_RESTORED = _with_apostrophe()


def normalise_vqa(text: str) -> str:
    """Normalise an answer as the evaluation code of the VQA challenge does."""
    drop_all = _COMMA.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if alone or drop_all else " ")
    result = _PERIOD.sub("", result, count=_PERIODS_DROPPED)
    words = [_DIGITS.get(word, word) for word in result.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(output: str, answers: Sequence[str]) -> float:
    """The soft accuracy of `output`, between 0 and 1; `answers` are those of all annotators, with repetitions."""
    output, answers = _trimmed(output), [_trimmed(answer) for answer in answers]
    if len(set(answers)) > 1:
        output, answers = normalise_vqa(output), [normalise_vqa(answer) for answer in answers]
    same = [answer == output for answer in answers]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(answers)


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@metric("vqa_score")
def vqa_score(turns: Sequence[Turn]) -> Vectors:
    """Mean soft accuracy; the references are the annotators' answers."""
    return [(vqa_accuracy(turn.output, turn.references), 1.0) if turn.references else None for turn in turns]
