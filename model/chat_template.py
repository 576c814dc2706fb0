"""The prompt template of a chat-tuned decoder, extracted from its tokenizer's chat template.

Such a decoder answers well only in the format that it was tuned on. `template_from_tokenizer` renders short
conversations with the tokenizer's Jinja template, splits them at the messages, and makes a `Template` of the pieces.
Then drawn conversations are tokenised in both ways and compared, see chat_template_check.py. So labels stay exact and
token counts still add up, which a Jinja template alone does not guarantee. Images stay in their places inside the
user's turn.

Where a chat template has no place for a system text, or moves it to a later question, it is put at the beginning of the
first question. Templates that know of reasoning are rendered without it (`enable_thinking=False`).

Pure Python, like template.py.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .chat_template_check import check_same_tokens
from .template import INLINE, Template

_SYSTEM = "SYSTEMTEXT"
_QUESTIONS = ("QUESTIONTEXT", "SECONDQUESTION", "THIRDQUESTION")
_ANSWERS = ("ANSWERTEXT", "SECONDANSWER")
_BY_HAND = (
    "No fixed texts come near: write the texts around questions and answers by hand (`question_header`, "
    "`answer_header`, `answer_end`, ...), or use `template: paper`, which every decoder can learn"
)
_CODES = "aAbBcdDeFGgHIjklmMnpPrRsStTuUVwWxXyYzZ"
"""The codes of `strftime`, each of which may have a flag."""
_DAYS = (dt.datetime(2024, 7, 26), dt.datetime(2025, 11, 3))  # noqa: DTZ001 - a template formats them


def template_from_tokenizer(
    tokenizer: Any, image_header: str = "", image_end: str = "", system: str | None = None
) -> Template:
    """Extract the prompt template from a tokenizer with a chat template.

    `image_header`, such as "Image {number}:", and `image_end` are put around every image; `system` replaces the text
    that the chat template inserts before the conversation.

    Raises ValueError if there is no chat template; if it does more than put fixed texts around the messages, saying
    what and which template comes near; or if a text of a user could produce a token that ends a turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template; use one of a chat-tuned language model")
    chat = _ChatTemplate(tokenizer)
    try:
        template, equal_system = _extracted(chat)
    except ValueError as error:
        raise ValueError(f"{error}. {_BY_HAND}") from None
    _check_special_tokens(template, tokenizer)
    try:
        chat.check_date()
        check_same_tokens(template, tokenizer, chat.text, equal_system)
    except ValueError as error:
        written = {key: value for key, value in template.to_dict().items() if value != getattr(Template(), key)}
        raise ValueError(f"{error}. The nearest template is {json.dumps(written, ensure_ascii=False)}") from None
    template = replace(template, image_header=image_header, image_end=image_end)
    return template if system is None else replace(template, system=system)


class _ChatTemplate:
    """Renders conversations with a tokenizer's chat template, on a fixed day."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.jinja = tokenizer.get_chat_template()
        # Templates for messages with images may take the content of a message as a list of parts alone.
        self._as_parts = False
        if not self._writes_questions():
            self._as_parts = True
            self._as_parts = self._writes_questions()

    def _writes_questions(self) -> bool:
        try:
            return _QUESTIONS[0] in self.text([{"role": "user", "content": _QUESTIONS[0]}], True)
        except ValueError:
            return False

    def text(self, messages: Sequence[dict[str, str]], prompt: bool, day: dt.datetime = _DAYS[0]) -> str:
        """A conversation as text; with `prompt`, the header of an answer comes last.

        Raises ValueError if the chat template raises anything.
        """
        try:
            return self.tokenizer.apply_chat_template(
                [self._message(message) for message in messages],
                tokenize=False,
                add_generation_prompt=prompt,
                enable_thinking=False,
                chat_template=self._on(day),
            )
        except Exception as error:
            raise ValueError(f"the tokenizer's chat template fails: {error}") from error

    def _message(self, message: dict[str, str]) -> dict[str, Any]:
        if not self._as_parts:
            return dict(message)
        return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}

    def around(self, rounds: int, prompt: bool, system: bool = False) -> list[str]:
        """The texts before, between and behind the messages of so many rounds; with `prompt`, and one more question."""
        turns = [("system", _SYSTEM)] if system else []
        for question, answer in zip(_QUESTIONS[:rounds], _ANSWERS, strict=False):
            turns += [("user", question), ("assistant", answer)]
        if prompt:
            turns.append(("user", _QUESTIONS[rounds]))
        text = self.text([{"role": role, "content": content} for role, content in turns], prompt)
        pieces = []
        for _, message in turns:
            before, found, text = text.partition(message)
            if not found:
                raise ValueError(f"the tokenizer's chat template leaves out or moves the text of a message ({message})")
            pieces.append(before)
        return [*pieces, text]

    def strips(self, role: str) -> bool:
        """Whether messages of a role lose blanks and newlines at their edges."""
        padded = " \n X \n "
        turns = [("user", padded if role == "user" else "Q"), ("assistant", padded if role == "assistant" else "A")]
        text = self.text([{"role": name, "content": content} for name, content in [*turns, *turns, turns[0]]], True)
        return "\n X" not in text and "X \n" not in text

    def _on(self, day: dt.datetime) -> str:
        """The Jinja text, with `strftime_now` as a macro that writes one day: the result must not depend on today."""
        if "strftime_now" not in self.jinja:
            return self.jinja
        codes = "".join(
            f" | replace('%{flag}{code}', '{day.strftime('%' + flag + code)}')" for code in _CODES for flag in ("", "-")
        )
        return "{%- macro strftime_now(format) -%}{{ format" + codes + " }}{%- endmacro -%}" + self.jinja

    def check_date(self) -> None:
        """Raise ValueError if the text depends on the day."""
        messages = [{"role": "user", "content": "Q"}]
        one, other = (self.text(messages, True, day) for day in _DAYS)
        if one != other:
            raise ValueError(
                "the tokenizer's chat template inserts the date of the day, so that the model would read another text "
                "every day: write its texts by hand, with a date that stays"
            )


def _extracted(chat: _ChatTemplate) -> tuple[Template, bool]:
    """The template of the fixed texts, and whether system texts are written as the chat template writes them."""
    tokenizer = chat.tokenizer
    begin, prompt = chat.around(0, prompt=True)
    first, answer_header, middle, second_header, second_middle, last_prompt = chat.around(2, prompt=True)
    last_header = chat.around(1, prompt=False)[1]
    if (first, second_header, second_middle, last_prompt) != (begin, answer_header, middle, prompt):
        raise ValueError("the tokenizer's chat template writes earlier turns of a conversation in another way")
    answer_end = _answer_end(middle, tokenizer)
    answer_header, last_answer_header, answer_start = _answer_headers(answer_header, last_header, prompt)
    between = middle[len(answer_end) :]
    question_header = _common_suffix(begin, between)
    # Some tokenizers name as begin-of-sequence the token that begins every turn.
    bos = bool(tokenizer.bos_token) and begin.startswith(tokenizer.bos_token)
    bos = bos and tokenizer.bos_token not in question_header
    begin = begin[len(tokenizer.bos_token) if bos else 0 :]
    question_header = _common_suffix(begin, question_header)
    if question_header != begin:
        # The blanks between two turns belong to the first of them.
        question_header = question_header.lstrip() or question_header
    before_question = begin[: len(begin) - len(question_header)]
    system_header, system_end, inside, equal = _around_system(chat, bos, before_question, question_header)
    system = _between(before_question, system_header, system_end) if equal and not inside else ""
    template = Template(
        system=system,
        system_header=system_header,
        system_end=system_end,
        system_inside=inside,
        without_system="" if system else before_question,
        image_header="",
        image_end="",
        question_header=question_header,
        answer_header=answer_header,
        last_answer_header=last_answer_header,
        answer_start=answer_start,
        answer_end=answer_end,
        round_end=between[: len(between) - len(question_header)],
        bos=bos,
        images=INLINE,
        special=True,
        strip=chat.strips("user") and chat.strips("assistant"),
        joined=True,
    )
    return template, equal


def _answer_headers(earlier: str, last: str, prompt: str) -> tuple[str, str, str]:
    """The text before an answer, the one before the last answer if it differs, and the blank that a model generates.

    `earlier`, `last`: what comes before an earlier and the last answer; `prompt`: what a prompt ends with.
    """
    header = earlier.rstrip(" ")
    if earlier == last and header == prompt.rstrip(" "):
        # A model generates the blank with the first word of an answer, whether or not the prompt has it.
        return header, "", earlier[len(header) :]
    if last == prompt:
        return earlier, last, ""
    raise ValueError(
        f"the tokenizer's chat template ends a prompt with {prompt[-80:]!r}, but writes {last[-80:]!r} before an "
        "answer: write its texts by hand, with the end of a prompt in `last_answer_header`"
    )


def _around_system(
    chat: _ChatTemplate, bos: bool, before_question: str, question_header: str
) -> tuple[str, str, bool, bool]:
    """The texts before and after a system text, whether they belong to the first question, and whether they are known.

    Where the chat template has no place for a system text, it is put at the beginning of the first question.
    """
    start = len(chat.tokenizer.bos_token) if bos else 0
    try:
        before, after, *_ = chat.around(0, prompt=True, system=True)
    except ValueError:
        return before_question + question_header, "\n\n", True, False
    header, inside = before[start:], not after.endswith(question_header)
    end = after if inside else after[: len(after) - len(question_header)]
    try:
        equal = chat.around(2, prompt=True, system=True)[:2] == [before, after]
    except ValueError:
        equal = False  # it comes before the last question
    return header, end, inside, equal


def _between(text: str, header: str, end: str) -> str:
    """What stands between a header and an end; nothing if the text does not have them."""
    if len(text) <= len(header) + len(end) or not (text.startswith(header) and text.endswith(end)):
        return ""
    return text[len(header) : len(text) - len(end)]


def _answer_end(text: str, tokenizer: Any) -> str:
    """The end of an answer: everything up to and including the first special token behind it."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content]
    positions = [(text.find(token), -len(token), token) for token in names if token in text]
    if not positions:
        raise ValueError("the tokenizer's chat template closes an answer with no special token, so no model could stop")
    position, _, token = min(positions)
    return text[: position + len(token)]


def _check_special_tokens(template: Template, tokenizer: Any) -> None:
    """Raise ValueError if a token that separates turns is none of the tokenizer's special ones."""
    texts = template.system_header, template.question_header, template.round_end, template.answer_end
    for token in tokenizer.added_tokens_decoder.values():
        if not token.special and any(token.content in text for text in texts):
            raise ValueError(
                f"the tokenizer's chat template separates turns by {token.content!r}, which any text of a user could "
                'produce: mark it special in tokenizer.json ("special": true in `added_tokens`)'
            )


def _common_suffix(one: str, other: str) -> str:
    """The longest text that both end with."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]
