"""A chat-tuned decoder's own prompt, taken out of its tokenizer's chat template: the alternative to the default one.

Such a decoder answers well only in the form that it was tuned on. `template_from_tokenizer` writes two conversations with the
tokenizer's Jinja template, cuts them at what was said, and puts the pieces into a `Template`; then it checks that the
two write the same. So labels stay exact and token counts still add up, which a Jinja template alone cannot promise.
Images are shown inside the user's turn, numbered as ever.

Pure Python, like template.py.
"""

from __future__ import annotations

from typing import Any

from .template import Template, segments

_SYSTEM, _QUESTION, _ANSWER, _AGAIN = "SYSTEMTEXT", "QUESTIONTEXT", "ANSWERTEXT", "SECONDQUESTION"


def template_from_tokenizer(
    tokenizer: Any, image_header: str = "Image {number}:\n", image_end: str = "\n", system: str | None = None
) -> Template:
    """Take the prompt template out of a tokenizer with a chat template.

    `image_header` and `image_end` go around every image; `system` takes the place of what the chat template says by
    itself at the start.

    Raises ValueError if there is no chat template, or if it does more than put fixed texts around what is said.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template; use one of a chat-tuned language model")

    def written(*said: str, roles: tuple[str, ...] = ("user", "assistant", "user")) -> str:
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    begin, prompt = _cut(written(_QUESTION), _QUESTION)
    first, answer_header, middle, last = _cut(written(_QUESTION, _ANSWER, _AGAIN), _QUESTION, _ANSWER, _AGAIN)
    answer_end = _ending(middle, tokenizer)
    between = middle[len(answer_end) :]
    bos = bool(tokenizer.bos_token) and begin.startswith(tokenizer.bos_token)
    start = len(tokenizer.bos_token) if bos else 0
    question_header = _common_end(begin[start:], between)
    said_first = begin[start : len(begin) - len(question_header)]
    header, end = _around_system(written, start, question_header, prompt)
    own = said_first.removeprefix(header).removesuffix(end) if said_first else ""
    template = Template(
        system=own,
        system_header=header,
        system_end=end,
        image_header=image_header,
        image_end=image_end,
        question_header=question_header,
        answer_header=answer_header,
        answer_end=answer_end,
        round_end=between[: len(between) - len(question_header)],
        bos=bos,
        images_inside=True,
        special=True,
    )
    # Where a prompt stops before the blank that an answer starts with, it is ours that goes on to it.
    same = (first, last) == (begin, prompt) and answer_header.rstrip() == prompt.rstrip()
    for said, roles in (
        ((_QUESTION, _ANSWER, _AGAIN), ("user", "assistant", "user")),
        ((_SYSTEM, _QUESTION, _ANSWER, _AGAIN), ("system", "user", "assistant", "user")),
    ):
        if roles[0] == "system" and not header + end:
            continue  # it knows no system message
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        spoken = _spoken(messages, template, tokenizer).removesuffix(answer_header) + prompt
        same = same and spoken == written(*said, roles=roles)
    if not same:
        raise ValueError(
            "the tokenizer's chat template does more than put fixed texts around what is said (it may tell the date, "
            "or change earlier turns); write its texts into a template by hand"
        )
    return template if system is None else Template.from_dict(template.to_dict() | {"system": system})


def _around_system(written: Any, start: int, question_header: str, prompt: str) -> tuple[str, str]:
    """What stands before and after a system message; two empty texts if the chat template knows none."""
    try:
        text = written(_SYSTEM, _QUESTION, roles=("system", "user"))
    except Exception:  # of whatever kind the template raises to say so
        return "", ""
    if _SYSTEM not in text:
        return "", ""
    before, after = text.split(_SYSTEM, 1)
    return before[start:], after.removesuffix(question_header + _QUESTION + prompt)


def _cut(text: str, *said: str) -> list[str]:
    """The pieces of `text` before, between and after what was said."""
    found = []
    for part in said:
        before, mark, text = text.partition(part)
        if not mark:
            raise ValueError(f"the tokenizer's chat template leaves out what is said, such as {part!r}")
        found.append(before)
    return [*found, text]


def _ending(text: str, tokenizer: Any) -> str:
    """What closes an answer: everything up to and including the first special token behind it."""
    places = [(text.find(token), token) for token in tokenizer.get_added_vocab() if token and token in text]
    if not places:
        raise ValueError("the tokenizer's chat template closes an answer with no special token, so no model could stop")
    place, token = min(places)
    return text[: place + len(token)]


def _common_end(one: str, other: str) -> str:
    """The longest text that both end with."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _spoken(messages: list[dict[str, Any]], template: Template, tokenizer: Any) -> str:
    texts = {"end": template.answer_end}
    begin = tokenizer.bos_token if template.bos else ""
    return begin + "".join(texts.get(part.kind, part.text) for part in segments(messages, template))
