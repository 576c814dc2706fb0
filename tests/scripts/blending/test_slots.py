"""Image slots become the final names of images."""

import pytest

from scripts.blending.slots import follow_up, has_slots, question_parts, question_text, render_slots


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


def test_a_question_is_divided_at_the_images_that_it_shows():
    question = "<|image:1:shown|> is like image <|image:0|>. <|image:2:shown|>"
    assert question_parts(question, 4) == ["", 6, " is like image 5. ", 7, ""]
    assert question_text(question, 4) == "image 6 is like image 5."
    assert question_parts("What is it?", 4) == ["What is it?"]


def test_slots_are_recognised():
    assert has_slots("a <|image:11:letter|> b") and has_slots("a <|image:11:shown|> b")
    assert not has_slots("image 1 <|image:x|>")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is it?", "In image 3, what is it?"),
        ("A dog?", "In image 3, a dog?"),
        ("I wonder.", "In image 3, I wonder."),
        ("I'd say so?", "In image 3, I'd say so?"),
        ("TV or radio?", "In image 3, TV or radio?"),
        ("Is it <|image:0:letter|>?", "In image 3, is it c?"),
        ("", "In image 3, "),
        ("<|image:0:shown|>\nWhat is it?", "In image 3, what is it?"),
        ("What made <|image:0:shown|> so blue?", "In image 3, what made image 3 so blue?"),
    ],
)
def test_a_follow_up_names_its_image(question, expected):
    assert follow_up(question, 2) == expected
