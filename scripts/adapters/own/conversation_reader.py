"""What a row of own data means: its form is recognised by the members that have values, and read as a conversation.

The forms are those of forms.yaml; `columns:` in the configuration replaces the recognition. Every member of a row is
understood, or counted as ignored under its name, or costs the row where the conversation depends on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.adapters.base import RowError, text
from scripts.adapters.own.conversation import OwnConversation, ShownImage, Turn
from scripts.adapters.own.forms import FORMS, Form
from scripts.adapters.own.image_values import ImageBytes, ImageName, ImageValue
from scripts.adapters.own.listed_images import ListedImages, group_of, listed_images, looks_like_image
from scripts.adapters.own.rounds_reader import RoundsReader
from scripts.adapters.own.turn_reader import TurnReader, loss_switch
from scripts.adapters.own.values import as_list, has_value, members_of, shown
from scripts.adapters.raw import Note
from scripts.config.custom import ColumnsConfig, OwnRowsConfig

_ROW = FORMS.row
_BOOKKEEPING_SPLIT = "__split__"
_QUESTIONS = frozenset(name for form in FORMS.forms for name in form.question)
_ANSWERS = frozenset(name for form in FORMS.forms if form.kind == "rounds" for name in form.answer)


@dataclass
class _Fit:
    """A form as it was read from a row."""

    form: str
    turns: list[Turn]
    notes: list[Note]
    read: set[str]


class RowReader:
    """Reads the rows of one dataset."""

    def __init__(self, own: OwnRowsConfig) -> None:
        """Read with `own`; what it leaves out is recognised."""
        columns = own.columns
        self.own = own
        self._turns = TurnReader(columns)
        self._rounds = RoundsReader(self._turns, columns.history, columns.prompt)
        self._forms = _forms_of(columns)
        self._orders = sorted({form.order for form in self._forms})
        self._split = own.split.column if own.split and own.split.column else _BOOKKEEPING_SPLIT
        self._ids = (columns.id,) if columns.id else _ROW.id
        self._systems = (columns.system,) if columns.system else _ROW.system
        self._images = columns.images
        self._silent = frozenset((*_ROW.silent, self._split, *columns.ignore, *self._ids[:1]))
        self._chosen = {columns.messages, columns.question, columns.answer}

    def read(self, row: Any) -> OwnConversation:
        """The conversation of a row.

        After it, the places of images without an image of their own are as many as the listed images, or none.

        Raises:
            RowError: the row cannot be used, with the reason and what was expected.
        """
        if isinstance(row, list) and row and all(isinstance(turn, dict) for turn in row):
            row = {self.own.columns.messages or "messages": row}
        if not isinstance(row, dict):
            raise RowError("bad_row", f"not an object but {type(row).__name__}")
        values = {name: value for name, value in row.items() if value is not None and has_value(value)}
        self._refuse(values)
        images = listed_images(values, self._images)
        fit = self._fit(values, images)
        read = fit.read
        read.update(images.members)
        turns = self._with_system(fit.turns, values, read)
        turns = self._supervised(turns, values, fit.notes, read)
        turns = _joined(turns, fit.notes)
        turns, listed = _placed(turns, images, fit.notes)
        if len(read) < len(values):
            self._ignored(values, read, bool(listed) or any(map(_shows, turns)), fit.notes)
        split = values.get(self._split, "")
        return OwnConversation(
            fit.form,
            tuple(turns),
            listed,
            self._id(values),
            split if type(split) is str else str(split),
            tuple(fit.notes),
        )

    def _refuse(self, values: Mapping[str, Any]) -> None:
        """Raise RowError if the row has members on which its text depends and that cannot be read."""
        for name in _ROW.media:
            if name in values and name not in self._silent and name not in self._chosen:
                raise RowError("unsupported_media", f"the row has {name!r}, which this model does not read")
        if all(name in values for name in _ROW.preference) and not self._chosen.intersection(_ROW.preference):
            if self.own.columns.messages is None and self.own.columns.answer is None:
                way_out = "`columns: {answer: chosen}` (texts) or `columns: {messages: chosen}` (turns) takes one"
                raise RowError("preference_pair", f"chosen and rejected answers are not trained on as pairs: {way_out}")
        for name in _ROW.undesirable:
            if values.get(name) is False and name not in self._silent:
                raise RowError("undesirable_answer", f"{name}: false marks an answer that should not be learned")

    def _fit(self, values: dict[str, Any], images: ListedImages) -> _Fit:
        """The form that fits the row, read.

        Raises:
            RowError: unknown_form, ambiguous_form (two fit and differ), or the error of the only one that fits.
        """
        fits: list[_Fit] = []
        for order in self._orders:
            for form in self._forms:
                if form.order == order and self._may_fit(form, values, images):
                    fits.append(self._read_form(form, values, images.named))
            if fits:
                break
        else:
            raise self._unknown(values)
        first = fits[0]
        for other in fits[1:]:
            if _content(other) != _content(first):
                raise RowError(
                    "ambiguous_form",
                    f"the row is both {first.form} and {other.form}, which differ: choose with `columns:` "
                    "(messages, or question and answer)",
                )
            first.read.update(other.read)
        if first.form != "columns":
            self._refuse_other_texts(first, values)
        return first

    def _may_fit(self, form: Form, values: dict[str, Any], images: ListedImages) -> bool:
        if form.kind == "turns":
            return any(name in values and _are_turns(as_list(values[name]), form) for name in form.turns)
        if form.kind == "caption" and self.own.columns.prompt is None and not (images.listed or images.named):
            return False
        return self._rounds.fits(form, values)

    def _read_form(self, form: Form, values: dict[str, Any], named: Mapping[str, ImageValue]) -> _Fit:
        notes: list[Note] = []
        read: set[str] = set()
        if form.kind != "turns":
            return _Fit(form.name, self._rounds.turns(form, values, named, notes, read), notes, read)
        name = next(name for name in form.turns if name in values and _are_turns(as_list(values[name]), form))
        read.add(name)
        turns = self._turns.turns(as_list(values[name]), name, named, notes)
        for answer in form.answer:
            if answer in values:
                read.add(answer)
                turns += self._rounds.answer_turns(values[answer], answer, named, notes)
        return _Fit(form.name, turns, notes, read)

    def _refuse_other_texts(self, fit: _Fit, values: Mapping[str, Any]) -> None:
        """Raise RowError if a question or an answer stands in a further member, beside those of the form."""
        if fit.form in _ROUNDS:
            others = [name for name in values if name in _QUESTIONS and name not in fit.read]
            others += [name for name in values if name in _ANSWERS - set(_ROUNDS[fit.form].answer) - fit.read]
            others = [name for name in others if name not in self._silent]
            if others:
                raise RowError(
                    "ambiguous_form",
                    f"{', '.join(sorted(fit.read)[:4])} and {', '.join(others[:4])} may all be meant: name question and "
                    "answer with `columns:`",
                )

    def _unknown(self, values: dict[str, Any]) -> RowError:
        columns = self.own.columns
        wanted = [name for name in (columns.messages, columns.question, columns.answer) if name and name not in values]
        if wanted:
            return RowError("missing_member", f"no value in {', '.join(wanted)}: the row has {members_of(values)}")
        for form in self._forms:
            for name in form.turns:
                if form.order == 1 and name in values:
                    found = (
                        shown(values[name])
                        if isinstance(values[name], str)
                        else f"of type {type(values[name]).__name__}"
                    )
                    return RowError("bad_row", f"{name!r:.40} should be a list of turns, it is {found}")
        return RowError(
            "unknown_form",
            f"no question and answer: the row has the members {members_of(values)}; map them with `columns:` (docs/forms.md)",
        )

    def _with_system(self, turns: list[Turn], values: dict[str, Any], read: set[str]) -> list[Turn]:
        """The turns, with the system text of the row's member, if any, first.

        Raises:
            RowError: bad_system (no text), two_systems, misplaced_system.
        """
        texts = [turn for turn in turns if turn.role == "system"]
        if texts and turns[0].role != "system":
            raise RowError("misplaced_system", "a system text stands after the first turn")
        found = {name: values[name] for name in self._systems if name in values}
        read.update(found)
        for name, value in found.items():
            if not isinstance(value, str):
                raise RowError("bad_system", f"{name!r} should be a text, it is of type {type(value).__name__}")
            if value.strip():
                texts.append(self._turns.turn("system", value, {}))
        if not texts:
            return turns
        if any(turn.parts != texts[0].parts for turn in texts[1:]):
            raise RowError("two_systems", f"{len(texts)} system texts differ")
        rest = [turn for turn in turns if turn.role != "system"]
        return [texts[0], *rest] if texts[0].parts else rest

    def _supervised(self, turns: list[Turn], values: dict[str, Any], notes: list[Note], read: set[str]) -> list[Turn]:
        """The turns, none of them supervised if a switch of the row says so; unsupervised answers are counted."""
        for name in _ROW.loss:
            if name in values:
                read.add(name)
                if not loss_switch(name, values[name], "assistant", notes):
                    raise RowError("nothing_supervised", f"{name}: 0 excludes the row from training")
        unsupervised = [turn for turn in turns if turn.role == "assistant" and not turn.supervised]
        if unsupervised:
            if len(unsupervised) == sum(turn.role == "assistant" for turn in turns):
                raise RowError("nothing_supervised", "no answer of the row is trained on")
            notes += [Note("unsupervised_turn", "an answer is shown, but not trained on")] * len(unsupervised)
        return turns

    def _ignored(self, values: dict[str, Any], read: set[str], shows: bool, notes: list[Note]) -> None:
        """Count the members that are not understood.

        Raises:
            RowError: unknown_image_member (one seems to be an image, and the row shows no other).
        """
        for name, value in values.items():
            if name in read or name in self._silent:
                continue
            if (
                not shows
                and self._images is None
                and (looks_like_image(value) or group_of(str(name), value) is not None)
            ):
                raise RowError(
                    "unknown_image_member",
                    f"{name!r:.40} seems to be an image: `columns: {{images: {name!s:.40}}}`, or ignore: [{name!s:.40}]",
                )
            notes.append(Note(f"ignored:{name!s:.60}", ""))

    def _id(self, values: dict[str, Any]) -> str:
        for name in self._ids:
            value = values.get(name)
            if value is None:
                continue
            if type(value) is str:
                return text(value, repr(name))
            if type(value) not in (int, float) or value in (float("inf"), float("-inf")):
                raise RowError("bad_row", f"{name!r} is not a text or a number but {shown(value)}")
            return str(value)
        return ""


_ROUNDS = {form.name: form for form in FORMS.forms if form.kind == "rounds"}


def _forms_of(columns: ColumnsConfig) -> tuple[Form, ...]:
    """The forms to recognise: those of the table, or the one that `columns` describes."""
    made = {"name": "columns", "order": 1, "about": "the members that `columns:` names"}
    if columns.messages:
        answer = (columns.answer,) if columns.answer else ()
        return (Form.model_construct(**made, kind="turns", turns=(columns.messages,), answer=answer),)
    if not (columns.question or columns.answer or columns.prompt):
        return FORMS.forms
    usual = next(form for form in FORMS.forms if form.kind == "rounds" and form.only_one)
    caption = next(form for form in FORMS.forms if form.kind == "caption")
    answer = (columns.answer,) if columns.answer else (*usual.answer, *(caption.answer if columns.prompt else ()))
    question = (columns.question,) if columns.question else (() if columns.prompt else usual.question)
    same = [form for form in FORMS.forms if form.kind == "rounds" and columns.question in form.question]
    context = (columns.context,) if columns.context else (same[0].context if same else ())
    context = tuple(name for name in context if name not in (*question[:1], *answer[:1]))
    options = usual.options
    return (
        Form.model_construct(
            **made, kind="rounds", question=question, answer=answer, context=context, options=options, only_one=True
        ),
    )


def _are_turns(value: Any, form: Form) -> bool:
    """Whether a value of a member may be a list of turns; a list of texts only where it must be one."""
    if not isinstance(value, list | tuple):
        return False
    return bool(value) and (form.order == 1 or all(isinstance(each, str | dict) for each in value))


def _content(fit: _Fit) -> list[tuple[str, str]]:
    """Roles and texts without whitespace, to compare two forms of one row."""
    return [
        (turn.role, "".join("".join(part.split()) for part in turn.parts if isinstance(part, str)))
        for turn in fit.turns
    ]


def _shows(turn: Turn) -> bool:
    return any(isinstance(part, ShownImage) for part in turn.parts)


def _joined(turns: list[Turn], notes: list[Note]) -> list[Turn]:
    """Turns of user and assistant in turn, after the system text; turns of the user that follow each other are joined.

    Raises:
        RowError: assistant_first, two_answers, no_answer, empty_text.
    """
    result: list[Turn] = []
    previous = None
    for number, turn in enumerate(turns):
        if not turn.parts and turn.role != "user":
            raise RowError("empty_text", f"turn {number}, of the {turn.role}, is empty")
        if turn.role == "assistant":
            if previous is None:
                raise RowError(
                    "assistant_first", "the conversation begins with the assistant: a user's turn should be first"
                )
            if previous == "assistant":
                raise RowError("two_answers", f"turn {number} is the second answer in a row")
        elif previous == "user":
            result[-1] = Turn("user", _with_line_between(result[-1].parts, turn.parts))
            notes.append(Note("merged_turns", "turns of the user that follow each other are joined by a line break"))
            continue
        result.append(turn)
        previous = None if turn.role == "system" else turn.role
    if previous is None or not any(turn.role == "assistant" for turn in result):
        raise RowError("no_answer", f"{len(turns)} turns without an answer")
    return result


def _with_line_between(first: tuple[str | ShownImage, ...], second: tuple[str | ShownImage, ...]) -> tuple[Any, ...]:
    if not first or not second:
        return first or second
    head, tail = list(first), list(second)
    between = "\n"
    if isinstance(head[-1], str):
        between = f"{head.pop()}{between}"
    if isinstance(tail[0], str):
        between = f"{between}{tail.pop(0)}"
    return (*head, between, *tail)


def _placed(turns: list[Turn], images: ListedImages, notes: list[Note]) -> tuple[list[Turn], tuple[ImageValue, ...]]:
    """The turns without a last question that has no answer, and the listed images that they show.

    Raises:
        RowError: image_count (places and images do not match), empty_text.
    """
    listed = images.listed
    shown_images = [part for turn in turns for part in turn.parts if isinstance(part, ShownImage)]
    if shown_images or listed or images.named:
        listed = _matching(shown_images, listed)
        _check_named(shown_images, images.named)
    if turns[-1].role == "user":
        notes.append(Note("unanswered_question", f"the last of {len(turns)} turns is left out"))
        places = _places(turns)
        turns = turns[:-1]
        listed = listed[: _places(turns)] if places else listed
    first = True
    for turn in turns:
        if turn.role == "user":
            if not turn.parts and not (first and listed):
                raise RowError("empty_text", "a question is empty")
            first = False
    return turns, listed


def _places(turns: list[Turn]) -> int:
    return sum(isinstance(part, ShownImage) and part.value is None for turn in turns for part in turn.parts)


def _matching(shown_images: list[ShownImage], listed: tuple[ImageValue, ...]) -> tuple[ImageValue, ...]:
    """The listed images that the places without one show, in their order; none if the places have the same ones.

    Raises:
        RowError: image_count.
    """
    given = [part.value for part in shown_images if part.value is not None]
    places = len(shown_images) - len(given)
    if given and listed and len(listed) == len(shown_images):
        if all(
            part.value is None or _same(part.value, value) for part, value in zip(shown_images, listed, strict=True)
        ):
            kept = [value for part, value in zip(shown_images, listed, strict=True) if part.value is None]
            return tuple(kept)
    if places != len(listed) and (places or given):
        if not places:
            raise RowError("image_count", f"the parts show {len(given)} images, the row lists {len(listed)} others")
        more = f" beside {len(given)} that the parts give" if given else ""
        raise RowError("image_count", f"{places} placeholders, but {len(listed)} images{more}")
    return listed


def _same(one: ImageValue, other: ImageValue) -> bool:
    if one == other:
        return True
    names = [value.name for value in (one, other) if isinstance(value, ImageName | ImageBytes)]
    return len(names) == 2 and names[0] == names[1] != ""


def _check_named(shown_images: list[ShownImage], named: Mapping[str, ImageValue]) -> None:
    values = [part.value for part in shown_images]
    missing = [name for name, value in named.items() if value not in values]
    if missing:
        raise RowError("image_count", f"{len(named)} images, but the texts do not show {', '.join(missing[:4])}")


_readers: dict[int, RowReader] = {}
_MAX_READERS = 64


def read_row(row: Any, own: OwnRowsConfig) -> OwnConversation:
    """The conversation of a row, read as `own` says. See `RowReader.read`, which is faster for many rows.

    Raises:
        RowError: the row cannot be used.
    """
    reader = _readers.get(id(own))
    if reader is None or reader.own is not own:
        if len(_readers) >= _MAX_READERS:
            _readers.clear()
        reader = _readers[id(own)] = RowReader(own)
    return reader.read(row)
