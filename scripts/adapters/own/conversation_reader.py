"""What a row of own data means: its form is recognised by the members that have values, and read as a conversation.

The forms are those of forms.yaml; `columns:` in the configuration replaces the recognition. Every member of a row is
understood, or counted as ignored under its name, or costs the row where the conversation depends on it.
"""

from collections.abc import Mapping
from typing import Any

from scripts.adapters.base import RowError, text
from scripts.adapters.own.conversation import OwnConversation, Turn
from scripts.adapters.own.form_recognition import FormReader
from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.listed_images import NO_IMAGES, listed_images, looks_like_image
from scripts.adapters.own.splits import SPLIT_MEMBER
from scripts.adapters.own.turn_reader import TurnReader, loss_switch
from scripts.adapters.own.turn_sequence import in_turn, with_images
from scripts.adapters.own.values import has_value, member_of, shown
from scripts.adapters.raw import Note
from scripts.config.custom import ColumnsConfig, OwnRowsConfig, SplitConfig

_ROW = FORMS.row
_EVALUATION = frozenset(SplitConfig.model_fields["values"].default)
_IMAGE_IDS = frozenset(_ROW.image_ids)
_SYSTEM_PARTS = "parts"
"""The member of Gemini's system instruction with its parts."""
_UNKNOWN = "unknown_form"
_PREFERENCE = frozenset(_ROW.preference)


class RowReader:
    """Reads the rows of one dataset."""

    def __init__(self, own: OwnRowsConfig) -> None:
        """Read as `own` says; what it leaves out is recognised."""
        columns = own.columns
        self.own = own
        self._usual = columns == ColumnsConfig()
        self._turns = TurnReader(columns)
        self._forms = FormReader(columns, self._turns)
        self._split = own.split.column if own.split and own.split.column else SPLIT_MEMBER
        self._ids = (columns.id,) if columns.id else _ROW.id
        self._systems = (columns.system,) if columns.system else _ROW.system
        self._images = columns.images
        self._inside = [name for name in named_members(columns).values() if "." in name]
        outside = [name.split(".", 1)[0] for name in self._inside]
        self._silent = frozenset((*_ROW.silent, self._split, *columns.ignore, *self._ids[:1], *outside))
        chosen = {columns.messages, columns.question, columns.context, columns.answer, columns.images}
        self._refused = frozenset(_ROW.media) - self._silent - chosen
        self._undesirable = frozenset(_ROW.undesirable) - self._silent
        self._takes_preference = bool(columns.messages or columns.answer)
        self._special = frozenset((*self._refused, *self._undesirable, *_PREFERENCE, *self._systems, *_ROW.loss))

    def read(self, row: Any) -> OwnConversation:
        """The conversation of a row.

        In it, the places of images without an image of their own are as many as the listed images, or none. Members
        that are recognised in no form, as the columns of a spreadsheet with capitals, are tried in lower case.

        Raises:
            RowError: the row cannot be used: the reason, and what was expected.
        """
        try:
            return self._read(row)
        except RowError as error:
            unknown = error
        plain = _in_lower_case(row) if unknown.reason == _UNKNOWN and self._usual else None
        if plain is None:
            raise unknown
        try:
            return self._read(plain)
        except RowError as error:
            # Its message would name the members in lower case.
            raise unknown if error.reason == _UNKNOWN else error from None

    def _read(self, row: Any) -> OwnConversation:
        if isinstance(row, list) and row and all(isinstance(turn, dict) for turn in row):
            row = {self.own.columns.messages or "messages": row}
        if not isinstance(row, dict):
            raise RowError("bad_row", f"the row is {shown(row)}, not an object")
        values = {name: value for name, value in row.items() if (value if type(value) is str else has_value(value))}
        for name in self._inside:
            value = member_of(row, name)
            if name not in values and has_value(value):
                values[name] = value
        special = not self._special.isdisjoint(values)
        if special:
            self._refuse(values)
        listed = listed_images(values, self._images)
        form, turns, notes, read = self._forms.read(values, listed)
        read.update(listed.members)
        if special:
            turns = self._with_system(turns, values, notes, read)
            self._check_loss(values, notes, read)
        elif "system" in [turn.role for turn in turns]:
            turns = _system_first(turns)
        turns = in_turn(turns, notes)
        turns, images, shows = with_images(turns, listed, notes)
        if False in [turn.supervised for turn in turns]:
            _count_unsupervised(turns, notes)
        if len(read) + (self._ids[0] in values) < len(values):
            self._count_ignored(values, read, shows, notes)
        split = values.get(self._split, "")
        split = split if type(split) is str else str(split)
        return OwnConversation(form, tuple(turns), images, self._id(values), split, tuple(notes) if notes else ())

    def _refuse(self, values: Mapping[str, Any]) -> None:
        """Raise RowError if the row has members that change what its text means and that cannot be honoured."""
        media = self._refused.intersection(values)
        if media:
            raise RowError("unsupported_media", f"the row has {min(media)!r}, which this model does not read")
        if _PREFERENCE.issubset(values) and not self._takes_preference:
            raise RowError(
                "preference_pair",
                "pairs of chosen and rejected answers are not trained on; `columns: {answer: chosen}` takes the chosen "
                "text, `columns: {messages: chosen}` the chosen turns",
            )
        for name in self._undesirable:
            if values.get(name) is False:
                raise RowError("undesirable_answer", f"{name}: false marks an answer that should not be learned")

    def _with_system(
        self, turns: list[Turn], values: Mapping[str, Any], notes: list[Note], read: set[str]
    ) -> list[Turn]:
        """The turns after the system text, of the turns or of a member of the row, if there is one.

        Raises:
            RowError: bad_system (no text), two_systems, misplaced_system.
        """
        systems = []
        for name in self._systems:
            if name in values:
                read.add(name)
                value = values[name]
                if isinstance(value, dict) and _SYSTEM_PARTS in value:
                    value = value[_SYSTEM_PARTS]
                elif not isinstance(value, str):
                    raise RowError("bad_system", f"{name!r} is {shown(value)}, not a text")
                systems.append(self._turns.turn("system", value, NO_IMAGES, notes))
        if systems and turns and turns[0].role == "system":
            turns = [turns[0], *systems, *turns[1:]]
        else:
            turns = [*systems, *turns]
        return _system_first(turns)

    def _check_loss(self, values: Mapping[str, Any], notes: list[Note], read: set[str]) -> None:
        for name in _ROW.loss:
            if name in values:
                read.add(name)
                if not loss_switch(name, values[name], "assistant", notes):
                    raise RowError("nothing_supervised", f"{name!r} of the row excludes it from training")

    def _count_ignored(self, values: Mapping[str, Any], read: set[str], shows: bool, notes: list[Note]) -> None:
        """Count the members that are not understood.

        Raises:
            RowError: unknown_image_member (one seems to be an image, and the conversation shows none).
        """
        for name, value in values.items():
            if name in read or name in self._silent:
                continue
            if not shows and self._images is None and (name in _IMAGE_IDS or looks_like_image(value)):
                way_out = f"add `columns: {{images: {name!s:.40}}}`, or list it in `columns: {{ignore: ...}}`"
                raise RowError("unknown_image_member", f"{name!r:.40} seems to mean an image: {way_out}")
            if self.own.split is None and _is_evaluation_split(name, value):
                way_out = f"`split: {{column: {name!s:.40}}}` keeps such rows for evaluation"
                notes.append(Note("unused_split", f"{name!r:.40} is {shown(value)}, and it is trained on; {way_out}"))
                continue
            notes.append(Note(f"ignored:{name!s:.60}", ""))

    def _id(self, values: Mapping[str, Any]) -> str:
        """The id of a row: a text or a number.

        Raises:
            RowError: bad_row (anything else, or infinity).
        """
        for name in self._ids:
            value = values.get(name)
            if value is None:
                continue
            if type(value) is str:
                return text(value, repr(name))
            if type(value) not in (int, float) or value in (float("inf"), float("-inf")):
                raise RowError("bad_row", f"{name!r} is {shown(value)}, not a text or a number")
            return str(value)
        return ""


def _is_evaluation_split(name: Any, value: Any) -> bool:
    """Whether a member seems to say that its row is for evaluation."""
    return isinstance(value, str) and str(name).lower() in _ROW.split and value.strip().lower() in _EVALUATION


def _system_first(turns: list[Turn]) -> list[Turn]:
    """The turns with one system text, or none if it is empty.

    Raises:
        RowError: misplaced_system, two_systems.
    """
    systems = [turn for turn in turns if turn.role == "system"]
    rest = [turn for turn in turns if turn.role != "system"]
    if turns[: len(systems)] != systems:
        raise RowError("misplaced_system", "a system text stands after a turn of the user or the assistant")
    systems = [turn for turn in systems if turn.parts]
    if any(turn.parts != systems[0].parts for turn in systems[1:]):
        raise RowError("two_systems", f"the conversation has {len(systems)} system texts")
    return systems[:1] + rest


def _in_lower_case(row: Any) -> dict[str, Any] | None:
    """A row with its names of members in lower case; None where that changes nothing, or makes two names equal."""
    if not isinstance(row, dict):
        return None
    plain = {str(name).strip().lower(): value for name, value in row.items()}
    return plain if len(plain) == len(row) and plain.keys() != row.keys() else None


def _count_unsupervised(turns: list[Turn], notes: list[Note]) -> None:
    """Count the answers that are not trained on.

    Raises:
        RowError: nothing_supervised (none is).
    """
    answers = [turn.supervised for turn in turns if turn.role == "assistant"]
    if not any(answers):
        raise RowError("nothing_supervised", "no answer of the row is trained on")
    notes += [Note("unsupervised_turn", "an answer is shown, but not trained on")] * answers.count(False)


def named_members(columns: ColumnsConfig) -> dict[str, str]:
    """The members of rows that `columns` names, by setting."""
    settings = ("messages", "question", "context", "answer", "history", "system", "images", "id")
    return {setting: name for setting in settings if (name := getattr(columns, setting)) is not None}


_readers: dict[int, RowReader] = {}
_MAX_READERS = 64


def read_row(row: Any, own: OwnRowsConfig) -> OwnConversation:
    """The conversation of a row. See `RowReader.read`, which does the same for many rows.

    Raises:
        RowError: the row cannot be used.
    """
    reader = _readers.get(id(own))
    if reader is None or reader.own is not own:
        if len(_readers) >= _MAX_READERS:
            _readers.clear()
        reader = _readers[id(own)] = RowReader(own)
    return reader.read(row)
