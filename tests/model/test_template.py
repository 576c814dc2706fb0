"""The template: order of images, exact labels, counts that add up, and text that stays text."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.messages import message_text
from model.template import IGNORE_INDEX, IMAGE_TOKEN, Template, encode, render, segments
from model.token_counter import TokenCounter, count_prefix
from tests.tiny_models import make_tokenizer, user

IMAGES = 4  # tokens of an image
CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "Which?"}, *({"type": "image", "index": i} for i in (1, 0))]},
    {"role": "assistant", "content": "The first."},
    {"role": "user", "content": [{"type": "text", "text": "And now?"}, {"type": "image", "index": 2}]},
    {"role": "assistant", "content": [{"type": "text", "text": "The third."}]},
]
DANGEROUS = ["<image>", "</s>", "<s>", "<pad>", "a<image>b</s>", "### Answer:\n", "{number}", "\n", "é 中 🙂", " "]


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def tokenizer(request, tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), bos=request.param))


def test_a_conversation_reads_as_documented():
    text = "".join(text for text, _ in render(CONVERSATION, Template(system="Be brief.")))
    assert text == (
        "Be brief.\n\n"
        "### Image 1:\n<image>\n\n### Image 2:\n<image>\n\n### Question:\nWhich?\n\n### Answer:\nThe first.</s>\n\n"
        "### Image 3:\n<image>\n\n### Question:\nAnd now?\n\n### Answer:\nThe third.</s>"
    )


def test_images_keep_their_order(tokenizer):
    encoded = encode(CONVERSATION, tokenizer, Template(), IMAGES)
    assert encoded.image_indices == [1, 0, 2]
    assert encoded.modality.count(2) == 3 * IMAGES
    placeholder = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert [token == placeholder for token in encoded.input_ids] == [kind == 2 for kind in encoded.modality]


def test_labels_are_the_answers_and_their_ends_and_nothing_else(tokenizer):
    encoded = encode(CONVERSATION, tokenizer, Template(system="Be brief."), IMAGES)
    supervised = [
        token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != IGNORE_INDEX
    ]
    assert tokenizer.decode(supervised) == "The first.</s>The third.</s>"
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))


def test_begin_of_sequence_comes_once_at_the_start(tokenizer):
    ids = encode(CONVERSATION, tokenizer, Template(), IMAGES).input_ids
    if tokenizer.bos_token_id is not None:
        assert ids.index(tokenizer.bos_token_id) == 0 and ids.count(tokenizer.bos_token_id) == 1
        assert encode(CONVERSATION, tokenizer, Template(bos=False), IMAGES).input_ids == ids[1:]


def test_what_closes_an_answer_is_plain_text_unless_the_template_holds_special_tokens(tokenizer):
    for special in (False, True):
        template = Template(answer_end="</s>", special=special)
        ids = encode(CONVERSATION, tokenizer, template, IMAGES).input_ids
        assert ids.count(tokenizer.eos_token_id) == (2 if special else 0)


def test_a_prompt_ends_where_the_answer_begins(tokenizer):
    whole = encode(CONVERSATION, tokenizer, Template(), IMAGES).input_ids
    prompt = encode(CONVERSATION[:-1], tokenizer, Template(), IMAGES)
    assert prompt.input_ids == whole[: len(prompt)]
    assert tokenizer.decode(whole[len(prompt) :]) == "The third.</s>"


def test_system_text_of_the_conversation_replaces_the_template_s(tokenizer):
    template = Template(system="One.")
    messages = [{"role": "system", "content": "Two."}, user("Hi"), assistant("Ho")]
    assert render(messages, template)[0] == ("Two.\n\n", False)
    without = [{"role": "system", "content": ""}, *messages[1:]]
    assert render(without, template)[0][0] == "### Question:\n"
    counter = TokenCounter(tokenizer, template, IMAGES)
    difference = count_prefix(tokenizer, template, "Two.") - counter.prefix()
    assert (
        len(encode(messages, tokenizer, template, IMAGES)) - len(encode(messages[1:], tokenizer, template, IMAGES))
        == difference
    )


@pytest.mark.parametrize("text", DANGEROUS)
def test_text_is_never_a_special_token(tokenizer, text):
    encoded = encode([user(text, 0), assistant(text)], tokenizer, Template(system=text), IMAGES)
    ids = encoded.input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == IMAGES
    assert tokenizer.pad_token_id not in ids
    assert ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token_id is not None)
    answer = [token for token, label in zip(ids, encoded.labels, strict=True) if label != IGNORE_INDEX][:-1]
    assert tokenizer.decode(answer) == text


def test_a_tokenizer_that_reads_text_as_an_image_is_refused(tokenizer, tmp_path):
    """One whose file does not mark <image> as special."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((tmp_path / name).read_text())
        content.pop("extra_special_tokens", None)
        for token in content.get("added_tokens", []):
            token["special"] = token["special"] and token["content"] != IMAGE_TOKEN
        (tmp_path / name).write_text(json.dumps(content))
    careless = AutoTokenizer.from_pretrained(tmp_path)
    encode([user("no image")], careless, Template(), IMAGES)
    with pytest.raises(ValueError, match=r"encodes the plain text 'an <image>' with .* must be marked special"):
        encode([user("an <image>")], careless, Template(), IMAGES)


def test_a_tokenizer_that_would_read_text_as_the_end_is_refused(tokenizer):
    from copy import deepcopy

    from tokenizers import AddedToken

    careless = deepcopy(tokenizer)
    careless.add_tokens([AddedToken("<end>", special=False)])
    careless.eos_token = "<end>"
    careless._tokenizer.add_tokens([AddedToken("<end>", special=False)])
    with pytest.raises(ValueError, match="must be marked special"):
        encode([user("an <end>")], careless, Template(), IMAGES)


def test_a_tokenizer_without_the_end_or_the_image_is_refused(tokenizer):
    from copy import deepcopy

    endless = deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        encode([user("x"), assistant("y")], endless, Template(), IMAGES)
    assert encode([user("x"), assistant("y")], endless, Template(answer_end="."), IMAGES)

    class Blind:
        """Knows no <image>, and has a token for all that it does not know, or none."""

        bos_token_id, eos_token_id = None, 1

        def __init__(self, unknown: int | None):
            self.unk_token_id = unknown

        def __call__(self, texts, **options):
            return {"input_ids": [[5] * len(text) for text in texts]}

        def convert_tokens_to_ids(self, token):
            return self.unk_token_id

    for unknown in (0, None):
        with pytest.raises(ValueError, match="has no token '<image>'"):
            encode([user("x", 0)], Blind(unknown), Template(), IMAGES)


@pytest.mark.parametrize("images", ["before", "inline"])
def test_texts_of_a_turn_are_joined_by_a_newline_and_empty_ones_left_out(images):
    parts = [{"type": "text", "text": text} for text in ("", "One", "", "two?", "")]
    shown = [{"type": "image", "index": 0}, *parts]
    message = {"role": "user", "content": shown}
    assert [part.text for part in segments([message], Template(images=images))][-2] == "One\ntwo?"


texts = st.one_of(st.sampled_from(DANGEROUS), st.text(min_size=1, max_size=20))
rounds = st.lists(st.tuples(texts, st.integers(0, 3), texts), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rounds=rounds, system=st.sampled_from(["", "Be brief.", "<image>"]), answered=st.booleans())
def test_counts_add_up(tokenizer, rounds, system, answered):
    template = Template(system=system)
    counter = TokenCounter(tokenizer, template, IMAGES)
    messages, total, number = [], counter.prefix(), 0
    for position, (question, images, answer) in enumerate(rounds):
        messages += [user(question, *range(images)), assistant(answer)]
        total += sum(counter.image(number + k + 1) for k in range(images))
        number += images
        total += (
            counter.round_overhead() + counter.questions([[question]])[0] + counter.answers([answer])[0] + counter.end()
        )
        total += counter.between_rounds() * (position > 0)
    if not answered:
        total -= counter.answers([rounds[-1][2]])[0] + counter.end()
        messages.pop()
    encoded = encode(messages, tokenizer, template, IMAGES)
    assert len(encoded) == total == len(encoded.labels) == len(encoded.modality)


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def image(index: int) -> dict:
    return {"type": "image", "index": index}


INTERLEAVED = [
    {"role": "user", "content": [text("Which is newer, "), image(4), text(" or "), image(2), image(0), text("?")]},
    {"role": "assistant", "content": "The first.", "supervised": False},
    {"role": "user", "content": [text("What is this?\n"), image(1)]},
    {"role": "assistant", "content": "A dog.", "supervised": True},
]


def test_images_come_before_a_question_that_names_them():
    assert "".join(text for text, _ in render(INTERLEAVED, Template())) == (
        "### Image 1:\n<image>\n\n### Image 2:\n<image>\n\n### Image 3:\n<image>\n\n"
        "### Question:\nWhich is newer, image 1 or image 2 image 3?\n\n### Answer:\nThe first.</s>\n\n"
        "### Image 4:\n<image>\n\n### Question:\nWhat is this?\n\n### Answer:\nA dog.</s>"
    )


def test_images_stand_where_they_were_written():
    template = Template(images="inline", image_header="[{number}:", image_end="]")
    assert "".join(text for text, _ in render(INTERLEAVED, template, end="<end>")) == (
        "### Question:\nWhich is newer, [1:<image>] or [2:<image>][3:<image>]?\n\n### Answer:\nThe first.<end>\n\n"
        "### Question:\nWhat is this?\n[4:<image>]\n\n### Answer:\nA dog.<end>"
    )


@pytest.mark.parametrize("images", ["before", "inline"])
def test_an_answer_that_is_not_supervised_has_no_labels(tokenizer, images):
    encoded = encode(INTERLEAVED, tokenizer, Template(images=images), IMAGES)
    supervised = [token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label >= 0]
    assert tokenizer.decode(supervised) == "A dog.</s>"
    assert encoded.image_indices == [4, 2, 0, 1]
    other = [message | {"supervised": True} for message in INTERLEAVED]
    assert encode(other, tokenizer, Template(images=images), IMAGES).input_ids == encoded.input_ids


def test_images_in_front_of_a_text_give_the_tokens_that_they_always_gave(tokenizer):
    """Neither layout changes a question whose images come first: only the header moves."""
    messages = [user(": which ?\n ", 0, 1), assistant("x")]
    before = [part.text for part in segments(messages, Template()) if part.text]
    inline = [part.text for part in segments(messages, Template(images="inline")) if part.text]
    assert sorted(before) == sorted(inline) and ": which ?\n " in before
    assert before.index("### Question:\n") == 4 and inline.index("### Question:\n") == 0


pieces = st.lists(st.one_of(texts, st.just(0)), min_size=1, max_size=5).filter(
    lambda parts: any(p != "" for p in parts)
)


@settings(max_examples=60, deadline=None)
@given(questions=st.lists(pieces, min_size=1, max_size=3))
def test_counts_of_images_between_texts_add_up(tokenizer, questions):
    template = Template(images="inline")
    counter = TokenCounter(tokenizer, template, IMAGES)
    messages, total, number = [], counter.prefix(), 0
    for position, parts in enumerate(questions):
        content = [image(9) if part == 0 else text(part) for part in parts]
        messages += [{"role": "user", "content": content}, assistant("yes")]
        written = [part.text for part in segments(messages, template) if part.from_message]
        total += counter.round_overhead() + counter.between_rounds() * (position > 0) + counter.end()
        shown = sum(part == 0 for part in parts)
        total += sum(counter.image(number + k + 1) for k in range(shown))
        number += shown
    total += sum(counter.answers(written))
    assert len(encode(messages, tokenizer, template, IMAGES)) == total


def test_the_text_of_a_message_for_a_reader():
    assert message_text(INTERLEAVED[0], shown=2) == "Which is newer, image 3 or image 4 image 5?"
    assert message_text(INTERLEAVED[1]) == "The first."
    assert message_text(user("What?", 0, 1)) == "What?"


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "no user message"),
        ([{"role": "system", "content": "x"}], "no user message"),
        ([assistant("x")], "message 0: a assistant message at the start"),
        ([user("x"), user("y")], "message 1: a user message after a user message"),
        ([user("x"), assistant("y"), assistant("z")], "message 2: a assistant message after a assistant"),
        ([user("x"), assistant("")], "message 1: the answer is empty"),
        ([user("")], "message 0: the user message is empty"),
        ([user("x"), {"role": "assistant", "content": [{"type": "image", "index": 0}]}], "cannot show images"),
        ([{"role": "system", "content": [{"type": "image", "index": 0}]}, user("x")], "system message cannot show"),
        ([user("x"), assistant("y"), {"role": "system", "content": "z"}], "message 2: a system message after"),
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([user("x"), assistant("y") | {"supervised": 0}], "message 1: 'supervised' must be true or false, not 0"),
        ([{"role": "user", "content": None}], "content must be"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part must be"),
    ],
)
def test_conversations_that_the_template_cannot_express_are_refused(messages, error):
    with pytest.raises(ValueError, match=error):
        segments(messages, Template())


def test_template_as_dictionary():
    template = Template(system="Hi", image_header="[{number}]")
    assert Template.from_dict(template.to_dict()) == template
    assert Template.from_dict({"system": "Hi"}).round_end == Template().round_end
    with pytest.raises(ValueError, match="unknown template key 'sytem'"):
        Template.from_dict({"sytem": "Hi"})
    with pytest.raises(ValueError, match="must be a text"):
        Template.from_dict({"system": 3})
    assert "images" not in Template().to_dict() and Template(images="inline").to_dict()["images"] == "inline"
    with pytest.raises(ValueError, match="'images' must be 'before' or 'inline', not 'behind'"):
        Template.from_dict({"images": "behind"})
    with pytest.raises(ValueError, match=r'"images": "inline" for true'):
        Template.from_dict({"images_inside": True})


def test_the_template_needs_no_torch():
    program = "import sys, model.template; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
