"""Filters, with the options of lmms-eval."""

import pytest

from scripts.evaluation.filters import pipeline


@pytest.mark.parametrize(
    ("steps", "text", "expected"),
    [
        ([{"function": "regex", "regex_pattern": r"answer is (\w+)"}], "The answer is B.", "B"),
        ([{"function": "regex", "regex_pattern": r"(\d)", "group_select": -1}], "1 or 2", "2"),
        ([{"function": "regex", "regex_pattern": r"(\d)", "fallback": "?"}], "none", "?"),
        ([{"function": "regex", "regex_pattern": r"(a)?(b)"}], "b", "b"),
        ([{"function": "lowercase"}, {"function": "take_first"}], "Red", "red"),
        ([{"function": "uppercase"}], "b", "B"),
        ([{"function": "remove_whitespace"}], " x ", "x "),
        ([{"function": "map", "mapping_dict": {"ja": "yes"}}], "ja", "yes"),
        ([{"function": "map", "mapping_dict": {}, "default_value": "no"}], "ja", "no"),
        ([], "as it is", "as it is"),
    ],
)
def test_filters(steps, text, expected):
    assert pipeline(steps, "here")(text) == expected
