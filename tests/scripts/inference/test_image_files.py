"""Splitting a line of paths."""

import pytest

from scripts.common.errors import UserError
from scripts.inference.image_files import split_paths


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("", []),
        ("a.jpg  b.jpg", ["a.jpg", "b.jpg"]),
        ("'my cat.jpg' b.jpg", ["my cat.jpg", "b.jpg"]),
        ('"my cat.jpg"', ["my cat.jpg"]),
        (r"my\ cat.jpg", ["my cat.jpg"]),
    ],
)
def test_split_paths(text, paths):
    assert split_paths(text) == paths


def test_an_unclosed_quote_is_an_error():
    with pytest.raises(UserError, match="a quote is not closed"):
        split_paths("it's.jpg")
