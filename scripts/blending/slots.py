"""Image slots: the parts of a record's text that refer to an image whose final number is known only in the plan.

A slot `<|image:I|>` names the record's image I. `<|image:I:letter|>` and `:LETTER` name it as "a" or "A", `:ordinal` as
"first". `<|image:I:shown|>` shows the image at its place in a question.
"""

import re

from model.question_parts import text_with_names
from scripts.common.records import SHOWN_SLOT

_NAME = re.compile(r"<\|image:(\d+)(?::(letter|LETTER|ordinal))?\|>")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def has_slots(text: str) -> bool:
    """Whether `text` refers to an image by a slot."""
    return _NAME.search(text) is not None or SHOWN_SLOT.search(text) is not None


def render_slots(text: str, offset: int) -> str:
    """Replace every slot that names an image by the name; image I of the record has the number I + `offset` + 1."""
    return _NAME.sub(lambda slot: _name(int(slot[1]) + offset + 1, slot[2]), text)


def question_parts(question: str, offset: int) -> list[str | int]:
    """A question as its texts and the numbers, from 1, of the images that it shows in its places; see `render_slots`.

    Texts and images alternate, and the first and the last part is a text, which may be empty.
    """
    pieces = SHOWN_SLOT.split(question)
    return [int(piece) + offset + 1 if place % 2 else render_slots(piece, offset) for place, piece in enumerate(pieces)]


def question_text(question: str, offset: int) -> str:
    """A question whose images are shown before it, with names in place of the images inside its sentences."""
    return text_with_names(question_parts(question, offset))


def follow_up(question: str, offset: int) -> str:
    """A question about a record's only image as a follow-up that names the image.

    "What is it?" becomes "In image 1, what is it?". A first word in capitals, and "I", stay as they are.
    """
    if SHOWN_SLOT.search(question):
        question = question_text(question, offset)
    word = question.split(maxsplit=1)[0] if question else ""
    keeps_capital = (len(word) > 1 and word[1].isupper()) or re.match(r"I\b", word)
    sentence = question if keeps_capital else question[:1].lower() + question[1:]
    return render_slots(f"In image <|image:0|>, {sentence}", offset)


def _name(number: int, style: str | None) -> str:
    if style == "ordinal":
        return _ordinal(number)
    if style is None:
        return str(number)
    letters = ""
    while number:
        number, letter = divmod(number - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters.upper() if style == "LETTER" else letters


def _ordinal(number: int) -> str:
    if number <= len(_ORDINALS):
        return _ORDINALS[number - 1]
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
