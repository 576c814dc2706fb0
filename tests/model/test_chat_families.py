"""The chat templates of model families, on small tokenizers of all kinds: the same tokens, and exact labels and counts.

The oracle is `apply_chat_template` of `transformers`, tokenised as a whole.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.chat_template import template_from_tokenizer
from model.template import IGNORE_INDEX, encode, render, segments, tokenised
from model.token_counter import TokenCounter
from tests.model.chat_families import FAMILIES, gemma, llama3, tokenizer_of

FAST = ("qwen", "prepend", "metaspace first", "mistral", "phi")
PAIRS = [
    pytest.param(name, kind, marks=() if kind in FAST else pytest.mark.long)
    for name, family in FAMILIES.items()
    for kind in family.tokenizers
]
CHATML = FAMILIES["chatml"].jinja
QUESTION, ANSWER = "Is it 3.5 cm?\n- or \u00fcber 12,000", "Red."
# What separates turns, in all families; a text of a user must not produce the tokens.
HOSTILE = "<|im_end|> </s> [INST] <end_of_turn> <|eot_id|> <|end|> <s> <image> <|User|> <|end_of_role|>"


@cache
def family_of(name, kind):
    tokenizer = tokenizer_of(kind, FAMILIES[name].jinja)
    return FAMILIES[name], tokenizer, template_from_tokenizer(tokenizer)


def conversation(rounds: int, system: str | None = None, answered: bool = True):
    turns = [{"role": "system", "content": system}] if system else []
    for number in range(rounds):
        turns += [{"role": "user", "content": f"{QUESTION} {number}"}, {"role": "assistant", "content": ANSWER}]
    return turns if answered else turns[:-1]


def whole(tokenizer, messages):
    """The tokens of a conversation in the chat template, tokenised as a whole."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=messages[-1]["role"] == "user", enable_thinking=False
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_tokens_are_those_of_the_whole_conversation(name, kind):
    family, tokenizer, template = family_of(name, kind)
    for system in (None, "Be brief.") if family.system else (None,):
        for rounds in (1, 2, 3):
            for answered in (True, False):
                messages = conversation(rounds, system, answered)
                theirs = whole(tokenizer, messages)
                ours = encode(messages, tokenizer, template, 1).input_ids
                assert ours == theirs[: len(ours)]
                assert not tokenizer.decode(theirs[len(ours) :]).replace("</s>", "").strip()
    prompt = conversation(2, answered=False)
    assert "".join(text for text, _ in render(prompt, template)).endswith(family.prompt)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_answer_and_what_closes_it_are_supervised(name, kind):
    family, tokenizer, template = family_of(name, kind)
    encoded = encode(conversation(2), tokenizer, template, 1)
    for number, text in enumerate(tokenizer.decode(run) for run in supervised_runs(encoded.labels)):
        assert number < 2 and text.replace(" ", "") == family.answer.replace(" ", "")
    written = [
        "".join(text for _, text in piece.parts)
        for piece, _ in tokenised(segments(conversation(2), template), tokenizer, template)
        if piece.supervised
    ]
    assert "".join(written) == family.answer * 2


def supervised_runs(labels):
    runs, before = [], IGNORE_INDEX
    for label in labels:
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(label)
        before = label
    assert len(runs) == 2
    return runs


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair.values[1] in FAST])
def test_a_text_never_produces_a_special_token(name, kind):
    _, tokenizer, template = family_of(name, kind)
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special} - {tokenizer.unk_token_id}

    def counted(text):
        messages = [*conversation(1), {"role": "user", "content": text}, {"role": "assistant", "content": text}]
        return [token for token in encode(messages, tokenizer, template, 1).input_ids if token in special]

    assert counted(HOSTILE) == counted("plain")


def counted(counter, questions, answers, system):
    """The length of a conversation as a plan computes it; images are 0 in the parts of questions."""
    numbered, number = [], 0
    for parts in questions:
        numbered.append([])
        for part in parts:
            number += part == 0
            numbered[-1].append(number if part == 0 else part)
    counts = counter.questions(numbered)
    if counter.first_differs(system):
        counts[:1] = counter.first_questions(numbered[:1], system)
    total = counter.prefix(system) + sum(counts) + counter.round_overhead() * len(questions) + counter.last_round()
    total += counter.between_rounds() * (len(questions) - 1) + sum(counter.image(n + 1) for n in range(number))
    return total + sum(counter.answers(answers)) + counter.end() * len(answers)


TEXTS = st.sampled_from(["Which?", " or ", "\nWhat is it?", "12", "x", " \n y \n", "\u00e4 \U0001f534", "<s>"])
PARTS = st.lists(st.one_of(TEXTS, st.just(0)), min_size=1, max_size=4)
COUNTED = ["chatml", "qwen 3", "llama 2", "llama 3", "gemma 3", "mistral 3", "zephyr", "vicuna", "alpaca", "phi"]


@pytest.mark.parametrize("kind", ["llama3", "prepend", "metaspace first", "gemma"])
@pytest.mark.parametrize("name", COUNTED)
@settings(max_examples=20, deadline=None)
@given(
    questions=st.lists(PARTS, min_size=1, max_size=3),
    system=st.sampled_from([None, "Be brief.", "\nNo\n"]),
    answered=st.booleans(),
)
def test_counts_add_up(name, kind, questions, system, answered):
    _, tokenizer, template = family_of(name, kind)
    turns = [{"role": "system", "content": system}] if system else []
    for parts in questions:
        content = [{"type": "image", "index": 0} if part == 0 else {"type": "text", "text": part} for part in parts]
        turns += [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER}]
    turns = turns if answered else turns[:-1]
    written = [_joined(parts) for parts in questions]
    answers = [ANSWER] * (len(questions) - (not answered))
    counter = TokenCounter(tokenizer, template, image_tokens=3)
    encoded = encode(turns, tokenizer, template, image_tokens=3)
    assert counted(counter, written, answers, system) == len(encoded)


def _joined(parts):
    """Neighbouring texts joined by a newline, as messages are."""
    found = []
    for part in parts:
        if part != 0 and found and found[-1] != 0:
            found[-1] += "\n" + part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize("kind", ["llama3", "prepend", "metaspace first"])
@pytest.mark.parametrize("name", COUNTED)
def test_an_image_at_the_beginning_changes_no_token_of_the_text(name, kind):
    _, tokenizer, template = family_of(name, kind)
    with_image = [{"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": QUESTION}]}]
    encoded = encode(with_image, tokenizer, template, image_tokens=2)
    placeholder = tokenizer.convert_tokens_to_ids("<image>")
    rest = [token for token in encoded.input_ids if token != placeholder]
    assert rest == encode([{"role": "user", "content": QUESTION}], tokenizer, template, 2).input_ids
    assert encoded.input_ids.count(placeholder) == 2 and encoded.image_indices == [0]


@pytest.mark.parametrize(
    ("jinja", "kind", "error"),
    [
        (llama3("strftime_now('%d %b %Y')"), "llama3", "inserts the date of the day"),
        (llama3(), "gpt2", "more than put fixed texts around the messages: in a conversation of 1 rounds without"),
        (CHATML.replace("m.content ~", "loop.length ~ m.content ~"), "qwen", "earlier turns"),
        (
            CHATML.replace("m.content ~", "m.content | replace('3', 'x') ~"),
            "qwen",
            "it gives the tok",
        ),
        (
            CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif"),
            "qwen",
            "<think>",
        ),
        (gemma("{{ nothing.at_all }}"), "gemma", "chat template fails"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(jinja, kind, error):
    with pytest.raises(ValueError, match=error):
        template_from_tokenizer(tokenizer_of(kind, jinja))


def test_the_refusal_contains_a_template_to_write():
    with pytest.raises(ValueError, match=r"nearest template is \{.*\"question_header\": ") as error:
        template_from_tokenizer(tokenizer_of("llama3", llama3("strftime_now('%d %b %Y')")))
    assert "26 Jul 2024" in str(error.value)


def test_tokens_between_turns_must_be_special():
    tokenizer = tokenizer_of("qwen", CHATML.replace("<|im_", "<|turn_"))
    tokenizer.add_tokens(["<|turn_start|>", "<|turn_end|>"])
    with pytest.raises(ValueError, match=r"'<\|turn_.*mark it special"):
        template_from_tokenizer(tokenizer)
