"""Questions whose images stand in their places: which of them the text names where images come first."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.question_parts import join_texts, text_with_names


def parts_of(text: str, mark: bool = True) -> list[str | int]:
    """The parts of a text with "<image>" in the places of images; without `mark`, empty texts are left out."""
    first, *others = text.split("<image>")
    parts: list[str | int] = [first]
    for number, other in enumerate(others, start=1):
        parts += [number, other]
    return parts if mark else [part for part in parts if part != ""]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("<image>What is it?", "What is it?"),
        ("<image> What is it?", "What is it?"),
        ("What is it? <image>", "What is it?"),
        ("What is it?<image>", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("What is it?\n<image><image>\n<image>", "What is it?"),
        ("<image>\n<image>\nWhat differs?", "What differs?"),
        ("<image> <image> What differs?", "What differs?"),
        ("Which is newer, <image> or <image>", "Which is newer, image 1 or image 2"),
        ("Which is newer, <image> or <image>?", "Which is newer, image 1 or image 2?"),
        ("Before: <image>\nAfter: <image>", "Before: image 1\nAfter: image 2"),
        ("<image> and <image>: which?", "image 1 and image 2: which?"),
        ("<image>: what is this?", "image 1: what is this?"),
        ("<image>, <image> and <image> differ. How?", "image 1, image 2 and image 3 differ. How?"),
        ("<image>'s colour?", "image 1's colour?"),
        ("<image>'What is it?' she asked.", "'What is it?' she asked."),
        ("Describe <image>", "Describe image 1"),
        ("Describe this. <image>", "Describe this."),
        ("Describe this: <image>", "Describe this: image 1"),
        ("Is it <image>? Or is it <image>?", "Is it image 1? Or is it image 2?"),
        ("Look at this.\n<image>What is it?", "Look at this.\nWhat is it?"),
        ("Look at this.\n<image>: what is it?", "Look at this.\nimage 1: what is it?"),
        ("compare<image>and<image><image>now", "compare image 1 and image 2 image 3 now"),
        ("1. <image>\n2. <image>\nWhich?", "1. image 1\n2. image 2\nWhich?"),
        ("(a) <image>\n(b) <image>", "(a) image 1\n(b) image 2"),
        ('He said "look!" <image>', 'He said "look!"'),
        ("\u8fd9\u662f\u4ec0\u4e48\uff1f<image>", "\u8fd9\u662f\u4ec0\u4e48\uff1f"),
        ("<image>\uff1a\u4ec0\u4e48", "image 1\uff1a\u4ec0\u4e48"),
        ("One\n\n<image>\n\nTwo", "One\n\nTwo"),
        ("One\n<image>\nTwo", "One\nTwo"),
        ("<image>\n\nWhat is it?", "What is it?"),
        ("What is it?\n\n<image>\n", "What is it?"),
        ("    code <image>\n    more", "    code image 1\n    more"),
        ("<image>", ""),
        ("<image>\n<image>", ""),
        ("What?  <image>  ", "What?"),
    ],
)
def test_images_inside_sentences_become_names(written, expected):
    assert text_with_names(parts_of(written)) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([1, ": what is this?"], ": what is this?"),
        ([1, 2, ", what?"], ", what?"),
        ([1, "\n  What is it? "], "\n  What is it? "),
        ([1], ""),
        ([1, "One", "", "two"], "One\ntwo"),
        ([1, " and ", 2, ": which?"], "image 1 and image 2: which?"),
        ([1, "", 2, ": which?"], "image 2: which?"),
        ([1, "", 2, "Which?"], "Which?"),
        ([1, "", "Is it like ", 2, "?"], "Is it like image 2?"),
        (["", 1, "", 2, ": which?"], "image 1 image 2: which?"),
    ],
)
def test_the_first_text_says_where_a_question_begins(parts, expected):
    assert text_with_names(parts) == expected


texts = st.text(st.sampled_from("aZ1 .?:,\n\t中é'"), max_size=12)


@given(st.lists(st.one_of(texts, st.just(0)), max_size=7))
def test_no_letter_is_lost_or_added_but_names(parts):
    numbers = iter(range(1, 8))
    parts = [next(numbers) if part == 0 else part for part in parts]
    text = text_with_names(parts)
    plain = "".join("".join(part.split()) for part in parts if isinstance(part, str))
    kept = "".join(text.split())
    for number in [part for part in parts if isinstance(part, int)]:
        kept = kept.replace(f"image{number}", "", 1)
    assert kept == plain


@given(st.integers(0, 3), st.lists(texts, max_size=3))
def test_a_text_behind_its_images_stays_as_it_is(images, after):
    after = [text for text in after if text]
    assert text_with_names([*range(1, images + 1), *after]) == "\n".join(after)


def test_neighbouring_texts_are_joined():
    assert join_texts(["", 1, "a", "", "b", 2, "", 3, "c", ""]) == [1, "a\nb", 2, 3, "c"]
    assert join_texts([]) == []


def test_it_needs_no_torch():
    program = "import sys, model.question_parts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
