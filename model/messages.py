"""Messages of a conversation in the chat form of `transformers`: checked, and taken apart into texts and images.

Pure Python: the data programs count tokens with it, and they never import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .question_parts import text_with_names


class Turn(NamedTuple):
    """A message: its role, its texts and the indices of its images in their order, and whether it is trained on."""

    role: str
    parts: list[str | int]
    supervised: bool

    @property
    def text(self) -> str:
        """The texts, joined by newlines."""
        return "\n".join(part for part in self.parts if isinstance(part, str) and part)

    @property
    def images(self) -> list[int]:
        """The indices of the images."""
        return [part for part in self.parts if isinstance(part, int)]


def parse_message(message: dict[str, Any], number: int) -> Turn:
    """Validate a message and take it apart. Raises ValueError, naming the message by its `number`."""
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"message {number}: role {role!r} is not system, user or assistant")
    parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise ValueError(f"message {number}: content must be a text or a list of parts, not {type(content).__name__}")
    found: list[str | int] = []
    for part in parts:
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            found.append(part["text"])
        elif part.get("type") == "image" and isinstance(part.get("index"), int):
            found.append(part["index"])
        else:
            raise ValueError(
                f"message {number}: a part must be {{'type': 'text', 'text': ...}} or "
                f"{{'type': 'image', 'index': number}}, not {part!r}"
            )
    turn = Turn(role, found, message.get("supervised", True))
    if not isinstance(turn.supervised, bool):
        raise ValueError(f"message {number}: 'supervised' must be true or false, not {turn.supervised!r}")
    if role == "assistant" and turn.images:
        raise ValueError(f"message {number}: an assistant message cannot show images")
    if role == "assistant" and not turn.text:
        raise ValueError(f"message {number}: the answer is empty, so there is nothing to learn from it")
    if role == "user" and not turn.text and not turn.images:
        raise ValueError(f"message {number}: the user message is empty")
    return turn


def message_text(message: Mapping[str, Any], shown: int = 0) -> str:
    """Return the text of a message for a reader, after `shown` images: a question as with `images: before`.

    Raises ValueError for a message that the template cannot express.
    """
    turn = parse_message(dict(message), 0)
    numbers = iter(range(shown + 1, shown + 1 + len(turn.images)))
    return text_with_names([next(numbers) if isinstance(part, int) else part for part in turn.parts])


def check_order(roles: list[str], first: int) -> None:
    """Raise ValueError unless user and assistant messages alternate, beginning with the user.

    `first` is the number of the first message, which errors name.
    """
    if not roles:
        raise ValueError("the conversation has no user message")
    for index, role in enumerate(roles):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            before = f"after a {roles[index - 1]} message" if index else "at the start"
            raise ValueError(f"message {first + index}: a {role} message {before}; expected a {expected} message")
