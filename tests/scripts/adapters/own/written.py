"""Conversations of own data in a short notation for tests: `U is it {a.jpg} {}`, `A a cat`, `(A) no`, `S be brief`."""

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import OwnConversation
from scripts.adapters.own.conversation_reader import read_row
from scripts.adapters.own.image_values import ImageAddress, ImageBytes, ImageName
from scripts.config.custom import OwnRowsConfig


def image(value) -> str:
    match value:
        case None:
            return "{}"
        case ImageName(name):
            return f"{{{name}}}"
        case ImageBytes(data, name):
            return f"{{{len(data)} bytes {name}".rstrip() + "}"
        case ImageAddress(url):
            return f"{{{url}}}"
    raise TypeError(value)


def written(conversation: OwnConversation) -> list[str]:
    """Its turns; an answer in parentheses is not trained on, and `{}` is the next one of the listed images."""
    result = []
    for turn in conversation.turns:
        text = "".join(part if isinstance(part, str) else image(part.value) for part in turn.parts)
        letter = turn.role[0].upper()
        result.append(f"{letter if turn.supervised else f'({letter})'} {text}")
    return result


def read(row, **columns) -> list[str]:
    return written(read_row(row, OwnRowsConfig.model_validate({"columns": columns})))


def listed(row, **columns) -> list[str]:
    return [image(value) for value in read_row(row, OwnRowsConfig.model_validate({"columns": columns})).listed]


def notes(row, **columns) -> dict[str, int]:
    reasons = [note.reason for note in read_row(row, OwnRowsConfig.model_validate({"columns": columns})).notes]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def dropped(row, **columns) -> tuple[str, str]:
    """Reason and detail."""
    try:
        conversation = read_row(row, OwnRowsConfig.model_validate({"columns": columns}))
    except RowError as error:
        return error.reason, error.detail
    raise AssertionError(f"kept: {written(conversation)}")


def chat(*turns, **row):
    """A row with `messages` of the user and the assistant in turn."""
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]} | row
