"""A decoder's chat template as a `Template`: the same text, exact labels, and counts that add up."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from model.chat_template import template_from_tokenizer
from model.modeling import VisualChatForConditionalGeneration
from model.template import IGNORE_INDEX, IMAGE_TOKEN, Template, encode, render
from tests.tiny_models import make_bases, user

MARKS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<start_of_turn>", "<end_of_turn>"]
LOOP = "{% for m in messages %}"
CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    + LOOP
    + "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "chatml without a system text": CHATML[CHATML.index(LOOP) :],
    "zephyr": LOOP
    + "{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ eos_token ~ '\n' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + LOOP
    + "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' ~ (m.content | trim) "
    + "~ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "llama 2": LOOP
    + "{% if m.role == 'user' %}{{ bos_token ~ '[INST] ' ~ m.content ~ ' [/INST]' }}"
    + "{% elif m.role == 'assistant' %}{{ ' ' ~ m.content ~ ' ' ~ eos_token }}{% endif %}{% endfor %}",
}
CONVERSATION = [
    user("Which?", 1, 0),
    {"role": "assistant", "content": "The first."},
    user("And <|im_end|> now?"),
    {"role": "assistant", "content": "Neither."},
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def tokenizer(bases):
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    tokenizer.add_special_tokens({"extra_special_tokens": MARKS}, replace_extra_special_tokens=False)
    return tokenizer


@pytest.fixture(params=TEMPLATES)
def named(request, tokenizer):
    tokenizer.chat_template = TEMPLATES[request.param]
    return request.param, template_from_tokenizer(tokenizer)


def test_it_renders_what_the_chat_template_renders(tokenizer, named):
    name, template = named
    plain = [
        {"role": m["role"], "content": "x" if isinstance(m["content"], list) else m["content"]} for m in CONVERSATION
    ]
    conversations = [plain]
    if name not in ("gemma", "llama 2"):
        conversations.append([{"role": "system", "content": "Be brief."}, *plain])
    begin = tokenizer.bos_token if template.bos else ""
    for messages in conversations:
        ours = begin + "".join(text for text, _ in render(messages, template))
        theirs = tokenizer.apply_chat_template(messages, tokenize=False)
        assert ours == theirs.rstrip("\n")  # a newline behind an answer is written only before the next question
    assert template.system == ("Be helpful." if name == "chatml" else "")


def test_labels_are_the_answers_and_their_ends(tokenizer, named):
    _, template = named
    encoded = encode(CONVERSATION, tokenizer, template, image_tokens=3)
    supervised = [
        token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != IGNORE_INDEX
    ]
    start, end = template.answer_start, template.answer_end
    assert tokenizer.decode(supervised) == f"{start}The first.{end}{start}Neither.{end}"
    assert encoded.image_indices == [1, 0] and encoded.modality.count(2) == 6
    assert encoded.input_ids.count(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)) == 6


def test_special_tokens_come_from_the_template_and_never_from_a_message(tokenizer, named):
    name, template = named
    ids = encode(CONVERSATION, tokenizer, template, image_tokens=3).input_ids
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(ends) == {"chatml": 5, "chatml without a system text": 4}.get(name, 0)
    closing = tokenizer(template.answer_end.strip(), add_special_tokens=False)["input_ids"]
    assert len(closing) == 1 and ids[-1] == closing[0]


def test_images_are_numbered_inside_the_turn_on_request(tokenizer, named):
    template = template_from_tokenizer(tokenizer, image_header="Image {number}:\n", image_end="\n")
    text = "".join(text for text, _ in render(CONVERSATION[:1], template))
    shown = "Image 1:\n<image>\nImage 2:\n<image>\nWhich?"
    assert template.question_header + shown in text and text.endswith(template.answer_header)


def test_images_stay_in_their_places_in_the_turn(tokenizer, named):
    _, template = named
    images = [{"type": "image", "index": index} for index in (0, 1)]
    texts = [{"type": "text", "text": text} for text in ("Is ", "older than ", "?")]
    question = [texts[0], images[0], texts[1], images[1], texts[2]]
    text = "".join(text for text, _ in render([{"role": "user", "content": question}], template))
    expected = "Is <image>older than <image>?"
    assert text.endswith(template.question_header + expected + template.answer_header)


def test_a_model_stops_at_the_end_of_an_answer(bases, tokenizer):
    tokenizer.chat_template = CHATML
    template = template_from_tokenizer(tokenizer, system="Answer in one word.")
    assert template.system == "Answer in one word." and Template.from_dict(template.to_dict()) == template
    model = VisualChatForConditionalGeneration.from_base_models(
        bases["vision"], bases["language"], tokenizer, template=template
    )
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert model.generation_config.eos_token_id == sorted(ends)
    tokenizer.chat_template = TEMPLATES["llama 2"]
    template = template_from_tokenizer(tokenizer)
    model = VisualChatForConditionalGeneration.from_base_models(
        bases["vision"], bases["language"], tokenizer, template=template
    )
    assert template.answer_end == " </s>" and model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "has no chat template"),
        (LOOP + "{{ m.role }}{% endfor %}", "leaves out or moves the text of a message"),
        (LOOP + "{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}", "closes an answer with no special token"),
        (CHATML.replace("m.content ~", "m.content ~ loop.index ~"), "writes earlier turns"),
    ],
)
def test_a_chat_template_of_more_than_fixed_texts_is_refused(tokenizer, text, error):
    tokenizer.chat_template = text
    with pytest.raises(ValueError, match=error):
        template_from_tokenizer(tokenizer)


def test_the_dictionary_of_the_default_template_stays_the_same():
    names = {"system", "system_end", "image_header", "image_end", "question_header", "answer_header", "round_end"}
    assert set(Template().to_dict()) == names
    assert Template.from_dict({"special": True}).to_dict()["special"] is True
    with pytest.raises(ValueError, match="'bos' must be true or false"):
        Template.from_dict({"bos": "yes"})


def test_it_needs_no_torch():
    program = "import sys, model.chat_template; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_template_for_parts_of_messages_alone_is_read_too(tokenizer):
    """Templates of models with images may loop over the parts of a message and know no plain text."""
    tokenizer.chat_template = CHATML
    expected = template_from_tokenizer(tokenizer)
    inner = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    tokenizer.chat_template = CHATML.replace(" ~ m.content ~ '", " }}" + inner + "{{ '")
    assert template_from_tokenizer(tokenizer) == expected


@pytest.mark.parametrize("code", ["%d %b %Y", "%-d. %B", "%x", "%A"])
def test_a_template_with_the_date_of_the_day_is_refused_whatever_its_form(tokenizer, code):
    tokenizer.chat_template = CHATML.replace("Be helpful.", "Today is ' ~ strftime_now('" + code + "') ~ '.")
    with pytest.raises(ValueError, match="inserts the date of the day") as error:
        template_from_tokenizer(tokenizer)
    assert "%" not in str(error.value), "the nearest template has a date, not the code of one"


def test_a_template_that_changes_late_in_a_conversation_is_refused(tokenizer):
    tokenizer.chat_template = CHATML.replace("{% endfor %}", "{% if loop.index == 16 %}(long){% endif %}{% endfor %}")
    with pytest.raises(ValueError, match="in a conversation of 12 rounds"):
        template_from_tokenizer(tokenizer)


def test_a_refusal_without_a_nearest_template_says_what_to_write(tokenizer):
    tokenizer.chat_template = LOOP + "{{ m.content | upper }}{% endfor %}"
    with pytest.raises(ValueError, match=r"closes an answer with no special.*by hand.*header.*template: paper"):
        template_from_tokenizer(tokenizer)
