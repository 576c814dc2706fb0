"""A row of own data once its form is understood: turns of text and images, before images are found."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scripts.adapters.own.image_values import ImageValue
from scripts.adapters.raw import Note

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ShownImage:
    """The place of an image in a turn. `value` is the image; None: the next one of those listed beside the turns."""

    value: ImageValue | None = None


class Turn(NamedTuple):
    """One turn: texts and images in the order in which they were written; `supervised`: whether it is trained on."""

    role: Role
    parts: tuple[str | ShownImage, ...]
    supervised: bool = True


class OwnConversation(NamedTuple):
    """A conversation of a row.

    Attributes:
        form: name of the form that was recognised.
        turns: of system, user and assistant.
        listed: images that the row lists beside its turns, in their order.
        id: of the row, or "".
        split: what the row's column of splits holds, or "".
        notes: what was repaired, ignored or is worth counting.
    """

    form: str
    turns: tuple[Turn, ...]
    listed: tuple[ImageValue, ...] = ()
    id: str = ""
    split: str = ""
    notes: tuple[Note, ...] = ()

    def image_values(self) -> Iterator[ImageValue]:
        """All images that the row gives: those in its turns, then those beside them."""
        for turn in self.turns:
            yield from (part.value for part in turn.parts if isinstance(part, ShownImage) and part.value is not None)
        yield from self.listed
