"""Rows of own data in their usual shape, read as rounds in one step: most rows have it, and it saves most of the time.

Such a row has one conversation, at most one image that it lists, and an id; its turns are of the user and the assistant
in turn, each with one text, and only the first question may show the image. For these rows the result is that of
`RowReader` and `rounds_of`; any other row, and every row of a dataset with settings of its own, is left to them.
"""

from collections import Counter
from itertools import product
from typing import Any, NamedTuple

from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.image_values import ImageValue, image_value
from scripts.adapters.own.text_markers import PLACEHOLDER
from scripts.adapters.own.turn_reader import TurnReader
from scripts.common.records import Round, shown_slot
from scripts.config.custom import ColumnsConfig, OwnRowsConfig

_SLOT = shown_slot(0)
_Members = tuple[str | None, str | None, str | None]
"""The members with the turns, the question and the answer."""


class PlainRow(NamedTuple):
    """The images of a row, one or none, its rounds, and its id or ""."""

    images: tuple[ImageValue, ...]
    rounds: tuple[Round, ...]
    id: str


class _Shape(NamedTuple):
    """Members of a row: that with its turns, or those with its question and its answer; those of its image and id."""

    texts: tuple[str] | tuple[str, str]
    image: str | None
    id: str | None


class PlainRows:
    """Reads the plain rows of one dataset."""

    def __init__(self, own: OwnRowsConfig) -> None:
        """Read as `own` says; if it has settings of columns or splits, no row is plain."""
        turns = TurnReader(own.columns)
        self._role_and_text, self._is_plain = turns.role_and_text, turns.is_plain
        self._shapes = _shapes() if own.columns == ColumnsConfig() and own.split is None else {}

    def read(self, row: Any) -> PlainRow | None:
        """The rounds of a plain row; None: it is another row.

        Raises:
            RowError: bad_image.
        """
        shape = self._shapes.get(frozenset(row)) if type(row) is dict else None
        if shape is None:
            return None
        image = None if shape.image is None else _image(row[shape.image])
        texts = self._texts(row, shape)
        if texts is None or (shape.image is not None and image is None):
            return None
        id_ = "" if shape.id is None else row[shape.id]
        if type(id_) is int:
            id_ = str(id_)
        elif type(id_) is not str or "<" in id_ or not id_.isascii() or id_ != id_.strip():
            return None
        rounds = self._rounds(texts, image is not None)
        return None if rounds is None else PlainRow(() if image is None else (image,), rounds, id_)

    def _texts(self, row: dict[str, Any], shape: _Shape) -> list[str] | None:
        """The texts of user and assistant in turn, as they are written."""
        if len(shape.texts) == 2:
            question, answer = row[shape.texts[0]], row[shape.texts[1]]
            return [question, answer] if type(question) is str and type(answer) is str else None
        turns = row[shape.texts[0]]
        if type(turns) is not list:
            return None
        texts = []
        role = "assistant"
        for turn in turns:
            read = self._role_and_text(turn) if type(turn) is dict else None
            if read is None or read[0] == role or read[0] == "system":
                return None
            role, text = read
            texts.append(text)
        # The first is of the user, so that the last is of the assistant where their number is even.
        return texts if texts and not len(texts) % 2 else None

    def _rounds(self, texts: list[str], has_image: bool) -> tuple[Round, ...] | None:
        """The rounds of texts in which the image may be shown once, by the first one."""
        before, place, after = texts[0].partition(PLACEHOLDER)
        if (place and not has_image) or not self._is_plain("\n".join((before, after, *texts[1:]))):
            return None
        if place:
            texts[0] = f"{before}{_SLOT}{after}"
        texts = [text.strip() for text in texts]
        if "" in texts:
            return None
        rounds = [Round((question,), (answer,)) for question, answer in zip(texts[::2], texts[1::2], strict=True)]
        if has_image:
            rounds[0] = Round((texts[0],), (texts[1],), (0,))
        return tuple(rounds)


def _image(value: Any) -> ImageValue | None:
    """The image of a member that is a name, a list of one name, or an object with bytes; None: it is something else."""
    if type(value) is list and len(value) == 1 and type(value[0]) is str and value[0]:
        return image_value(value[0])
    is_name = type(value) is str and value[:1] not in ("", "[")
    has_bytes = type(value) is dict and type(value.get("bytes")) is bytes and len(value["bytes"]) > 0
    return image_value(value) if is_name or has_bytes else None


def _shapes() -> dict[frozenset[str], _Shape]:
    """The shapes of plain rows by the names of all their members."""
    forms: Counter[tuple[str] | tuple[str, str]] = Counter()
    for form in FORMS.forms:
        if form.order == 1:
            forms.update((name,) for name in form.turns)
            forms.update(product(form.question, form.answer))
    of_forms = {name for texts in forms for name in texts}
    images = [None, *(name for names in FORMS.row.images for name in names if name not in of_forms)]
    shapes = {}
    for texts, count in forms.items():
        # Where several forms fit, `RowReader` compares what they give.
        if count == 1:
            for image, id_ in product(images, (None, FORMS.row.id[0])):
                names = (*texts, image, id_)
                shapes[frozenset(name for name in names if name is not None)] = _Shape(texts, image, id_)
    return shapes
