"""The texts of held-out conversations: the tokens that count as questions are those of the questions."""

import pytest

from model.chat_template import template_from_tokenizer
from model.template import Template, encode
from scripts.evaluation.own_texts import question_positions
from tests.model.chat_families import FAMILIES, tokenizer_of

SYSTEM, QUESTIONS, ANSWERS = "Be brief.", ("What is on the left?", "And 12 circles?"), ("Red.", "Two.")


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (None, "gpt2"),
        ("chatml", "gpt2"),
        ("chatml", "prepend"),
        ("llama 2", "prepend"),
        ("llama 3", "llama3"),
        ("phi", "phi"),
        ("mistral 1", "metaspace first"),
        ("vicuna", "metaspace always"),
    ],
)
@pytest.mark.parametrize("system", [True, False])
def test_the_measured_tokens_are_those_of_the_questions(family, kind, system):
    tokenizer = tokenizer_of(kind, FAMILIES[family or "chatml"].jinja)
    template = template_from_tokenizer(tokenizer) if family else Template()
    messages = [{"role": "system", "content": SYSTEM}] if system else []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids = encode(messages, tokenizer, template, 0).input_ids
    positions = question_positions(messages, tokenizer, template)
    text = ""
    for number, position in enumerate(positions):
        behind_gap = number > 0 and position > positions[number - 1] + 1
        text += ("|" if behind_gap else "") + tokenizer.decode([ids[position]])
    assert ["".join(part.split()) for part in text.split("|")] == ["".join(question.split()) for question in QUESTIONS]
