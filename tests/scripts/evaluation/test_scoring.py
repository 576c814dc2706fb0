"""Scoring a suite: values, intervals, correct answers, and the comparison of two systems."""

import pytest

from scripts.common.errors import UserError
from scripts.evaluation.metric_registry import METRICS, metric
from scripts.evaluation.scoring import compare, metric_spec, score_turns
from scripts.evaluation.statistics import wilson
from tests.scripts.evaluation.turn_factory import turn

EXACT = metric_spec("exact_match")


def test_values_intervals_and_scores():
    turns = [turn("red", "red"), turn("blue", "red"), turn("green", "green"), turn("free")]
    scored, rows = score_turns(turns, [EXACT, metric_spec("rouge_l")], 0.95)
    assert [each.correct for each in scored] == [True, False, True, None]
    assert scored[0].scores == {"exact_match": 1.0, "rouge_l": 1.0} and scored[3].scores == {}
    row = rows["exact_match"]
    assert (row["value"], row["n"], row["method"]) == (pytest.approx(2 / 3), 3, "wilson")
    assert row["interval"] == list(wilson(2, 3)) and row["higher_is_better"]
    assert rows["rouge_l"]["method"] == "bootstrap"


def test_turns_of_one_conversation_are_one_unit():
    turns = [turn("red", "red", test="a"), turn("x", "red", test="a", number=2), turn("red", "red", test="b")]
    row = score_turns(turns, [EXACT], 0.95)[1]["exact_match"]
    assert (row["method"], row["units"], row["n"]) == ("bootstrap", 2, 3)
    row = score_turns([turns[0], turns[2], turn("red", "red", test="a", number=2)], [EXACT], 0.95)[1]["exact_match"]
    assert (row["method"], row["interval"]) == ("wilson", list(wilson(2, 2)))


def test_a_first_metric_that_is_no_proportion_decides_nothing():
    scored, _ = score_turns([turn("a red ball", "a red ball")], [metric_spec("rouge_l"), EXACT], 0.95)
    assert scored[0].correct is None


def test_without_references_there_is_no_score():
    scored, rows = score_turns([turn("free")], [EXACT], 0.95)
    assert scored[0].correct is None
    assert rows["exact_match"] == {"n": 0, "higher_is_better": True, "value": None, "interval": None}


def test_two_systems():
    first = [turn("red", "red", test=str(number)) for number in range(8)]
    second = [turn("red" if number < 2 else "blue", "red", test=str(number)) for number in range(7)]
    result = compare(first, second, [EXACT], 0.95)["exact_match"]
    assert result["difference"] == pytest.approx(5 / 7) and result["n"] == 7
    assert result["p"] == pytest.approx(2 / 2**5)


def test_only_equal_questions_are_compared():
    first = [turn("red", "red", test="a"), turn("red", "red", test="b"), turn("red", "red", test="c")]
    second = [turn("x", "red", test="a"), turn("x", "blue", test="b"), turn("x", "red", test="c", question="Else?")]
    assert compare(first, second, [EXACT], 0.95)["exact_match"]["n"] == 1
    assert compare(first, [], [EXACT], 0.95) == {}


def test_unknown_names_and_options_are_errors():
    with pytest.raises(
        UserError, match=r"task\.yaml: there is no metric 'bleurt'; known metrics: acc, acc_norm, all_versions"
    ):
        metric_spec("bleurt", {}, "task.yaml")
    with pytest.raises(
        UserError, match="exact_match has no option 'ignore'; its options are ignore_case, ignore_punctuation"
    ):
        metric_spec("exact_match", {"ignore": 1}, "task.yaml")
    with pytest.raises(UserError, match="bleu has no option 'n'; it has no options"):
        metric_spec("bleu", {"n": 4}, "task.yaml")


def test_a_custom_metric():
    @metric("length")
    def length(turns, *, limit=3):
        return [(float(len(each.output) <= limit), 1.0) for each in turns]

    try:
        rows = score_turns([turn("red"), turn("green")], [metric_spec("length", {"limit": 4}, "here")], 0.95)[1]
    finally:
        del METRICS["length"]
    assert rows["length"]["value"] == 0.5
