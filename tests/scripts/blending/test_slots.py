"""Image slots become the final names of images."""

import pytest

from scripts.blending.slots import has_slots, name_image, render_slots


@pytest.mark.parametrize(
    ("text", "offset", "expected"),
    [
        ("Image <|image:0|> and <|image:1|>", 0, "Image 1 and 2"),
        ("Image <|image:0|> and <|image:1|>", 6, "Image 7 and 8"),
        ("image <|image:2:letter|>, image <|image:0:LETTER|>", 1, "image d, image B"),
        ("the <|image:1:ordinal|> image", 0, "the second image"),
        ("the <|image:0:ordinal|> image", 20, "the 21st image"),
        ("the <|image:0:ordinal|> image", 11, "the 12th image"),
        ("<|image:0:letter|>", 26, "aa"),
        ("no slot <image> <|image|>", 3, "no slot <image> <|image|>"),
    ],
)
def test_rendering(text, offset, expected):
    assert render_slots(text, offset) == expected


def test_slots_are_recognised():
    assert has_slots("a <|image:11:letter|> b")
    assert not has_slots("image 1 <|image:x|>")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is it?", "In image <|image:0|>, what is it?"),
        ("A dog?", "In image <|image:0|>, a dog?"),
        ("I wonder.", "In image <|image:0|>, I wonder."),
        ("I'd say so?", "In image <|image:0|>, I'd say so?"),
        ("TV or radio?", "In image <|image:0|>, TV or radio?"),
        ("Is it?", "In image <|image:0|>, is it?"),
        ("", "In image <|image:0|>, "),
    ],
)
def test_a_follow_up_names_its_image(question, expected):
    assert name_image(question) == expected
