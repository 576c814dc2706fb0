"""Whether a template gives the tokens of a chat template: drawn conversations are tokenised in both ways.

The conversations have one to four rounds and some of them twelve, with and without a system text, and texts in which
tokenizers differ: digits, punctuation, scripts, code, newlines, emoji. They are drawn by a fixed seed, so that the
result is the same everywhere.

Pure Python, like template.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from .template import Template, encode
from .token_counter import TokenCounter

Message = dict[str, str]
_CONVERSATIONS = 40
_MANY = 12
_TEXTS = (
    "What is on the left?",
    "yes",
    "12,345.67 - 8% of 2024-07-26; (a) or [b]?",
    "It's \"quoted\": 'one', «two», and more...",
    "def f(x):\n    return {x: [1, 2]}  # code\n\n\tprint(f(3))",
    "1. First\n2. Second\n\n- a list",
    "Größe, naïve, ça va? Да! Ελληνικά",
    "图中有什么。二つの円です。 한국어",
    "كم عدد الدوائر؟ कितने?",
    "A red circle \U0001f534 and \U0001f469\u200d\U0001f52c.",
    "two  blanks,   three, and a\ttab",
    "[brackets] <tags> {braces} | pipes ### hashes",
    ": begins with punctuation!!!",
    "UPPER lower CamelCase snake_case https://example.org/a?b=c&d",
)
_SYSTEMS = ("Be brief.", "You answer in 3 words:\n- never more", "Über alles: точно.")


def check_same_tokens(
    template: Template,
    tokenizer: Any,
    chat_text: Callable[[Sequence[Message], bool], str],
    with_system: bool,
) -> None:
    """Compare the tokens of drawn conversations, and the sums of their parts, with those of a chat template.

    `chat_text` renders a conversation with the chat template, and with the header of an answer at its end if the second
    argument is true; `with_system` is whether conversations have system texts.

    Raises ValueError, naming the first conversation whose tokens differ.
    """
    counter = TokenCounter(tokenizer, template, image_tokens=1)
    for messages in _drawn(template.strip, with_system):
        theirs = _ids(tokenizer, chat_text(messages, messages[-1]["role"] == "user"))
        encoded = encode(messages, tokenizer, template, image_tokens=1)
        # Behind the last answer a chat template may write more than what closes it, and a prompt may end with a blank.
        rest = tokenizer.decode(theirs[len(encoded) :])
        same = encoded.input_ids == theirs[: len(encoded)] and (
            not rest.strip(" ") or (messages[-1]["role"] == "assistant" and _ends_conversation(rest, tokenizer))
        )
        if not same:
            raise ValueError(_difference(messages, encoded.input_ids, theirs, tokenizer))
        if _counted(messages, counter) != len(encoded):
            raise ValueError(
                f"the number of tokens of the drawn conversation {messages!r} is not the sum of those of its parts"
            )


def _drawn(strip: bool, with_system: bool) -> list[list[Message]]:
    """The conversations: half of them end with a question, which is a prompt for an answer."""
    draw = random.Random(0)  # noqa: S311 - not for security
    found = []
    for number in range(_CONVERSATIONS):
        system = with_system and number % 4 == 3
        messages = [{"role": "system", "content": draw.choice(_SYSTEMS)}] if system else []
        rounds = _MANY if number % 10 == 9 else 1 + number % 4
        for place in range(2 * rounds - number // 4 % 2):
            text = draw.choice(_TEXTS)
            # What a template does to the edges of a first question with a system text inside it varies.
            edges = draw.choice(("", " ", "\n", "  \n ")) if strip and not system else ""
            messages.append({"role": ("user", "assistant")[place % 2], "content": edges + text + edges})
        found.append(messages)
    return found


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _ends_conversation(rest: str, tokenizer: Any) -> bool:
    return not rest.replace(tokenizer.eos_token or " ", "").strip()


def _counted(messages: Sequence[Message], counter: TokenCounter) -> int:
    """The length of a conversation as a plan computes it."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = [message["content"] for message in messages if message["role"] != "system"]
    questions, answers = turns[::2], turns[1::2]
    total = counter.prefix(system) + counter.between_rounds() * (len(questions) - 1) + counter.last_round()
    total += sum(counter.questions([[question] for question in questions])) + counter.round_overhead() * len(questions)
    if counter.first_differs(system):
        total += counter.first_questions([[questions[0]]], system)[0] - counter.questions([[questions[0]]])[0]
    return total + sum(counter.answers(answers)) + counter.end() * len(answers)


def _difference(messages: Sequence[Message], ours: list[int], theirs: list[int], tokenizer: Any) -> str:
    """The message that says where the tokens of a conversation differ."""
    same = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    rounds = sum(message["role"] == "user" for message in messages)
    system = "with" if messages[0]["role"] == "system" else "without"
    ends = "a question" if messages[-1]["role"] == "user" else "an answer"
    before = tokenizer.decode(ours[max(0, same - 8) : same])
    ours_next, theirs_next = (tokenizer.convert_ids_to_tokens(ids[same : same + 6]) for ids in (ours, theirs))
    return (
        "the tokenizer's chat template does more than put fixed texts around the messages: in a conversation of "
        f"{rounds} rounds {system} a system text that ends with {ends}, behind {before!r}, it gives the tokens "
        f"{theirs_next}, and fixed texts give {ours_next}"
    )
