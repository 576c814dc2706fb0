"""The prompt template of a chat-tuned decoder, extracted from its tokenizer's chat template.

Such a decoder answers well only in the format that it was tuned on. `template_from_tokenizer` renders short
conversations with the tokenizer's Jinja template, splits them at the messages, and makes a `Template` of the pieces;
then it checks that both render the same. So labels stay exact and token counts still add up, which a Jinja template
alone does not guarantee. Images stay in their places inside the user's turn.

Pure Python, like template.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .template import INLINE, Template, render

_SYSTEM, _QUESTION, _ANSWER, _SECOND = "SYSTEMTEXT", "QUESTIONTEXT", "ANSWERTEXT", "SECONDQUESTION"
_ROLES = ("user", "assistant", "user")


def template_from_tokenizer(
    tokenizer: Any, image_header: str = "", image_end: str = "", system: str | None = None
) -> Template:
    """Extract the prompt template from a tokenizer with a chat template.

    `image_header`, such as "Image {number}:", and `image_end` are put around every image; `system` replaces the text
    that the chat template inserts before the conversation.

    Raises ValueError if there is no chat template, or if it does more than put fixed texts around the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template; use one of a chat-tuned language model")

    def their_text(*texts: str, roles: tuple[str, ...] = _ROLES) -> str:
        return tokenizer.apply_chat_template(_messages(roles, texts), tokenize=False, add_generation_prompt=True)

    begin, prompt = _split_at(their_text(_QUESTION), _QUESTION)
    first, answer_header, middle, last = _split_at(their_text(_QUESTION, _ANSWER, _SECOND), _QUESTION, _ANSWER, _SECOND)
    answer_end = _answer_end(middle, tokenizer)
    between = middle[len(answer_end) :]
    bos = bool(tokenizer.bos_token) and begin.startswith(tokenizer.bos_token)
    start = len(tokenizer.bos_token) if bos else 0
    question_header = _common_suffix(begin[start:], between)
    before_question = begin[start : len(begin) - len(question_header)]
    system_header, system_end = _around_system(their_text, start, question_header, prompt)
    template = Template(
        system=before_question.removeprefix(system_header).removesuffix(system_end),
        system_header=system_header,
        system_end=system_end,
        image_header=image_header,
        image_end=image_end,
        question_header=question_header,
        answer_header=answer_header,
        answer_end=answer_end,
        round_end=between[: len(between) - len(question_header)],
        bos=bos,
        images=INLINE,
        special=True,
    )
    # The prompt may lack a blank at its end that the answer header of a full conversation has.
    same = (first, last) == (begin, prompt) and answer_header.rstrip() == prompt.rstrip()
    cases: list[tuple[tuple[str, ...], tuple[str, ...]]] = [((_QUESTION, _ANSWER, _SECOND), _ROLES)]
    if system_header + system_end:
        cases.append(((_SYSTEM, _QUESTION, _ANSWER, _SECOND), ("system", *_ROLES)))
    for texts, roles in cases:
        ours = _written(_messages(roles, texts), template, tokenizer).removesuffix(answer_header) + prompt
        same = same and ours == their_text(*texts, roles=roles)
    if not same:
        raise ValueError(
            "the tokenizer's chat template does more than put fixed texts around the messages (it may insert the date, "
            "or change earlier turns); write its texts into a template by hand"
        )
    return template if system is None else Template.from_dict(template.to_dict() | {"system": system})


def _messages(roles: Sequence[str], texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def _around_system(render: Callable[..., str], start: int, question_header: str, prompt: str) -> tuple[str, str]:
    """The texts before and after a system message; two empty ones if the chat template supports none."""
    try:
        text = render(_SYSTEM, _QUESTION, roles=("system", "user"))
    except Exception:  # noqa: BLE001 - a template may raise anything to refuse a system message
        return "", ""
    if _SYSTEM not in text:
        return "", ""
    before, after = text.split(_SYSTEM, 1)
    return before[start:], after.removesuffix(question_header + _QUESTION + prompt)


def _split_at(text: str, *messages: str) -> list[str]:
    """The pieces of `text` before, between and after the messages."""
    pieces = []
    for message in messages:
        before, found, text = text.partition(message)
        if not found:
            raise ValueError(f"the tokenizer's chat template leaves out the text of a message, such as {message!r}")
        pieces.append(before)
    return [*pieces, text]


def _answer_end(text: str, tokenizer: Any) -> str:
    """The end of an answer: everything up to and including the first special token behind it."""
    positions = [(text.find(token), token) for token in tokenizer.get_added_vocab() if token and token in text]
    if not positions:
        raise ValueError("the tokenizer's chat template closes an answer with no special token, so no model could stop")
    position, token = min(positions)
    return text[: position + len(token)]


def _common_suffix(one: str, other: str) -> str:
    """The longest text that both end with."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _written(messages: list[dict[str, Any]], template: Template, tokenizer: Any) -> str:
    begin = tokenizer.bos_token if template.bos else ""
    return begin + "".join(text for text, _ in render(messages, template))
