"""The template: order of images, exact labels, counts that add up, and text that stays text."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        total += counter.round_overhead() + sum(counter.texts([question, answer])) + counter.end()
        total += counter.between_rounds() * (position > 0)
    if not answered:
        total -= counter.texts([rounds[-1][2]])[0] + counter.end()
        messages.pop()
    encoded = encode(messages, tokenizer, template, IMAGES)
    assert len(encoded) == total == len(encoded.labels) == len(encoded.modality)


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


def test_the_template_needs_no_torch():
    program = "import sys, model.template; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
