"""Image slots: the parts of a record's text that name an image whose final number is known only in the plan.

A slot `<|image:I|>` names the record's image I. `<|image:I:letter|>` and `:LETTER` name it as "a" or "A", `:ordinal` as
"first".
"""

import re

_SLOT = re.compile(r"<\|image:(\d+)(?::(letter|LETTER|ordinal))?\|>")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def has_slots(text: str) -> bool:
    """Whether `text` names an image by a slot."""
    return _SLOT.search(text) is not None


def render_slots(text: str, offset: int) -> str:
    """Replace every slot by its image's name, where image I of the record has the number I + `offset` + 1."""
    return _SLOT.sub(lambda slot: _name(int(slot[1]) + offset + 1, slot[2]), text)


def name_image(question: str) -> str:
    """A question about a record's only image as a follow-up that names the image.

    "What is it?" becomes "In image <|image:0|>, what is it?". A first word in capitals, and "I", stay as they are.
    """
    word = question.split(maxsplit=1)[0] if question else ""
    keeps_capital = (len(word) > 1 and word[1].isupper()) or re.match(r"I\b", word)
    return "In image <|image:0|>, " + (question if keeps_capital else question[:1].lower() + question[1:])


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
