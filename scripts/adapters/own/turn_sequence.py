"""The turns of a conversation of own data as a whole: their order, and places of images against listed images."""

from collections.abc import Mapping
from itertools import groupby

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import ShownImage, Turn
from scripts.adapters.own.image_values import ImageBytes, ImageName, ImageValue
from scripts.adapters.own.listed_images import ListedImages
from scripts.adapters.own.text_markers import Part, joined, refuse_likely_placeholder
from scripts.adapters.raw import Note

MAX_IMAGES = 64
"""Images of the longest conversation that is read."""


def in_turn(turns: list[Turn], notes: list[Note]) -> list[Turn]:
    """Turns of user and assistant in turn, after the system text; turns of the user that follow each other are joined.

    Raises:
        RowError: assistant_first, two_answers, no_answer, empty_text.
    """
    previous = ""
    answers = doubled = 0
    for number, turn in enumerate(turns):
        role = turn.role
        if role == "assistant":
            answers += 1
            if not turn.parts:
                raise RowError("empty_text", f"turn {number} is an answer without text")
            if not previous:
                raise RowError("assistant_first", "the conversation begins with an answer, without a turn of the user")
            if previous == role:
                raise RowError("two_answers", f"turn {number} is a second answer after turn {number - 1}")
        elif previous == role:
            doubled += 1
        if role != "system":
            previous = role
    if not answers:
        raise RowError("no_answer", f"turns: {len(turns)}, none of them is an answer")
    return _merged(turns, notes) if doubled else turns


def _merged(turns: list[Turn], notes: list[Note]) -> list[Turn]:
    """The turns, those of the user that follow each other as one, with line breaks between."""
    result: list[Turn] = []
    for role, group in groupby(turns, key=lambda turn: turn.role):
        together = list(group)
        if role != "user" or len(together) == 1:
            result += together
            continue
        pieces: list[Part] = []
        for turn in together:
            pieces += ["\n", *turn.parts] if pieces and turn.parts else turn.parts
        result.append(Turn("user", tuple(joined(pieces))))
        reason = "turns of the user that follow each other are joined by a line break"
        notes += [Note("merged_turns", reason)] * (len(together) - 1)
    return result


def with_images(
    turns: list[Turn], images: ListedImages, notes: list[Note]
) -> tuple[list[Turn], tuple[ImageValue, ...], bool]:
    """The turns without a last question that has no answer, the listed images that they show, and if they show any.

    The places without an image of their own are as many as the images that are returned, or none.

    Raises:
        RowError: image_count (places and images do not match), too_many_images, empty_text, unsupported_media (a
            likely placeholder).
    """
    shown = [part for turn in turns for part in turn.parts if type(part) is ShownImage]
    listed = images.listed
    if shown or listed:
        number = max(len(shown), len(listed))
        if number > MAX_IMAGES:
            raise RowError("too_many_images", f"{number} images in one conversation, the limit is {MAX_IMAGES}")
        given = [part.value for part in shown if part.value is not None]
        if given and _are_same(shown, listed):
            # The row gives images twice, and its list may have their bytes.
            turns = [_without_values(turn) for turn in turns]
        else:
            listed = _matching(len(shown) - len(given), given, listed)
    if listed and not shown:
        for turn in turns:
            if turn.role == "user":
                refuse_likely_placeholder("".join(part for part in turn.parts if isinstance(part, str)))
    if images.named:
        _check_named(shown, images.named)
    if turns[-1].role == "user":
        notes.append(Note("unanswered_question", f"the last of {len(turns)} turns is left out"))
        places = _places(turns)
        turns = turns[:-1]
        listed = listed[: _places(turns)] if places else listed
    if () in [turn.parts for turn in turns]:
        _check_questions(turns, bool(listed) and not _places(turns))
    return turns, listed, bool(shown or listed)


def _check_questions(turns: list[Turn], images_before: bool) -> None:
    """Raise RowError if a question is empty, other than the first with images before it."""
    questions = [turn for turn in turns if turn.role == "user"]
    if any(not turn.parts for turn in questions[images_before:]):
        raise RowError("empty_text", "a question is empty")


def _places(turns: list[Turn]) -> int:
    return sum(type(part) is ShownImage and part.value is None for turn in turns for part in turn.parts)


def _matching(places: int, given: list[ImageValue], listed: tuple[ImageValue, ...]) -> tuple[ImageValue, ...]:
    """The listed images that `places` without one show, in their order; none if others have `given` the same ones.

    Raises:
        RowError: image_count.
    """
    if not given:
        if places not in (0, len(listed)):
            raise RowError("image_count", f"placeholders in the texts: {places}, images of the row: {len(listed)}")
        return listed
    if not listed and not places:
        return ()
    if not places and all(value in given for value in listed) and all(value in listed for value in given):
        return ()
    if places != len(listed) or not places:
        left = f"placeholders without one: {places}, images of the row: {len(listed)}"
        raise RowError("image_count", f"images that the turns give: {len(given)}, {left}")
    return listed


def _are_same(places: list[ShownImage], listed: tuple[ImageValue, ...]) -> bool:
    return len(places) == len(listed) and all(map(_same, places, listed))


def _same(place: ShownImage, listed: ImageValue) -> bool:
    """Whether a place may show a listed image: it has no image of its own, or the same one, or one of its name."""
    if place.value is None or place.value == listed:
        return True
    names = [value.name for value in (place.value, listed) if isinstance(value, ImageName | ImageBytes)]
    return len(names) == 2 and names[0] == names[1] != ""


def _without_values(turn: Turn) -> Turn:
    parts = tuple(part if isinstance(part, str) else ShownImage() for part in turn.parts)
    return Turn(turn.role, parts, turn.supervised)


def _check_named(shown: list[ShownImage], named: Mapping[str, ImageValue]) -> None:
    values = [part.value for part in shown]
    missing = [name for name, value in named.items() if value not in values]
    if missing:
        raise RowError(
            "image_count", f"images of the row: {len(named)}; the texts do not have {', '.join(missing[:4])}"
        )
