"""Placeholders and other markers of media in texts of own data."""

import pytest

from scripts.adapters.own.forms import FORMS
from tests.scripts.adapters.own.written import chat, dropped, listed, read


@pytest.mark.parametrize("marker", FORMS.markers, ids=lambda marker: marker.text or marker.example)
def test_every_marker_of_the_table_costs_its_row(marker):
    text = marker.text or marker.example
    for row in (chat(f"See {text}: what?", "Me.", image="a"), chat("Who?", f"{text}(1,2)")):
        reason, detail = dropped(row)
        assert reason == "unsupported_media" and text in detail
        assert ("image_tag" in detail) == marker.image


@pytest.mark.parametrize(
    "text",
    [
        '<img src="cat.png" alt="a cat">',
        '<video controls src="a.mp4"></video>',
        "<video>\n  <source src='a.mp4'>\n</video>",
        "Use `<video>` or `<img>`.",
        "```html\n<audio>\n```",
        "What does the <video> tag do?",
        "An <img> element has no end, <ref> tags do.",
        "if a<image and b>c: x[0] = [1]",
        "[IMAGE] <p>text</p> <image_folder> <IMAGES>",
    ],
)
def test_html_and_code_are_text(text):
    assert read(chat(text, text)) == [f"U {text}", f"A {text}"]


def test_the_text_around_placeholders_is_kept():
    question = "  <image>  \n\n a\t<image>b <image>\n"
    assert read(chat(question, " Me.\n", images=["a", "b", "c"])) == ["U {}  \n\n a\t{}b {}", "A Me."]
    parts = [
        {"type": "text", "text": " a "},
        {"type": "text", "text": "b"},
        {"type": "image"},
        {"type": "text", "text": " c"},
    ]
    assert read(chat(parts, "Me.", images=["a"])) == ["U a \nb{} c", "A Me."]


def test_a_path_in_the_text_is_an_image():
    assert read(chat("Picture 1: <img> a/b.jpg </img>\nWho?", "Me.")) == ["U Picture 1: {a/b.jpg}\nWho?", "A Me."]
    assert dropped(chat("<img></img>Who?", "Me."))[0] == "unsupported_media"
    assert dropped(chat("Who?", "<img>a.jpg</img>"))[0] == "image_in_answer"


def test_placeholders_and_images_must_match():
    for text, images, placeholders in (("<image> <image>", ["a"], 2), ("<image>", ["a", "b"], 1), ("<image>", [], 1)):
        reason, detail = dropped(chat(text, "Me.", images=images))
        assert reason == "image_count"
        assert detail == f"placeholders in the texts: {placeholders}, images of the row: {len(images)}"
    assert dropped(chat("Who?", "A <image>.", image="a"))[0] == "image_in_answer"
    assert dropped(chat("Who?", "Me.", images=["a"] * 65)) == (
        "too_many_images",
        "65 images in one conversation, the limit is 64",
    )


def test_images_of_parts_that_the_row_lists_again_are_shown_once():
    parts = [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "Who?"}]
    same = chat(parts, "Me.", images=["a.jpg"])
    assert read(same) == ["U {}Who?", "A Me."] and listed(same) == ["{a.jpg}"]
    # The list has the image itself, which wins over its name.
    assert listed(chat(parts, "Me.", images=[{"bytes": b"xyz", "path": "a.jpg"}])) == ["{3 bytes a.jpg}"]
    reason, detail = dropped(chat(parts, "Me.", images=["b.jpg"]))
    assert reason == "image_count" and "1" in detail
    assert dropped(chat(parts, "Me.", images=["a.jpg", "b.jpg"]))[0] == "image_count"


def test_parts_may_number_the_images():
    parts = [{"type": "image", "index": 1}, {"type": "text", "text": " or "}, {"type": "image", "index": 0}]
    row = chat(parts, "Me.", images=["a", "b"])
    assert read(row) == ["U {b} or {a}", "A Me."] and listed(row) == []
    assert dropped(chat([{"type": "image", "index": 2}], "Me.", images=["a", "b"]))[0] == "image_count"


def test_long_rows_cost_linear_time():
    """A row that would take hours if every marker or turn looked at the whole text."""
    assert read(chat("`<video>` " * 20_000, "Me."))
    turns = [{"role": "user", "content": "word " * 10}] * 20_000 + [{"role": "assistant", "content": "Me."}]
    assert len(read({"messages": turns})[0]) > 900_000
    assert read(chat([{"type": "text", "text": "word " * 10}] * 20_000, "Me."))


@pytest.mark.parametrize(
    "marker",
    [
        "<Image 1>",
        "<IMAGE_2>",
        "<image:cat.png>",
        "< image >",
        "<|img|>",
        "<|vision_bos|>",
        "<|video_1|>",
        "<image_token>",
        "<begin_of_image>",
        "[IMG0]",
        "<Img>a.png</Img>",
        "<__media__>",
        "![](data:image/png;base64,iVBORw0KGgo=)",
        "data:image/jpeg;base64,/9j/4AAQSkZJRg==",
    ],
)
def test_spellings_of_markers_that_no_list_has(marker):
    assert dropped(chat(f"{marker} Who?", "Me.", image="a"))[0] == "unsupported_media"


@pytest.mark.parametrize("marker", ["[image]", "{image}", "{{image}}", "<images>", "[IMAGE]", "<photo>"])
def test_a_likely_placeholder_costs_rows_whose_images_have_no_other_place(marker):
    question = f"Look at {marker}: who?"
    reason, detail = dropped(chat(question, "Me.", image="a"))
    assert reason == "unsupported_media" and f'columns: {{image_tag: "{marker}"}}' in detail
    assert read(chat(question, "Me.", image="a"), image_tag=marker) == ["U Look at {}: who?", "A Me."]
    assert read(chat(f"<image>{question}", "Me.", image="a")) == [f"U {{}}{question}", "A Me."]
    assert read(chat(question, "Me.")) == [f"U {question}", "A Me."]
