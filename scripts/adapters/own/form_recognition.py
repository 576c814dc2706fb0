"""Which form of forms.yaml a row of own data has, and its turns as that form gives them.

Forms are looked up by the members that a row has. If several of one order fit, they must give the same texts.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import Turn
from scripts.adapters.own.forms import FORMS, Form
from scripts.adapters.own.listed_images import ListedImages
from scripts.adapters.own.rounds_reader import RoundsReader
from scripts.adapters.own.turn_reader import TurnReader
from scripts.adapters.own.values import as_list, members_of, shown
from scripts.adapters.raw import Note
from scripts.config.custom import ColumnsConfig

_TEXTS = frozenset(FORMS.row.texts)
_HISTORY = frozenset(FORMS.row.history)
_MAX_KNOWN = 1000
"""Sets of names of members whose forms are kept."""
_OWN_FORM = "columns"
"""The name of the form that the configuration describes."""


class FormTurns(NamedTuple):
    """The turns of a row by one form: its name, the turns, what is worth counting, and the members understood."""

    form: str
    turns: list[Turn]
    notes: list[Note]
    read: set[str]


class FormReader:
    """Recognises the form of rows and reads their turns; one per dataset."""

    def __init__(self, columns: ColumnsConfig, turns: TurnReader) -> None:
        """Recognise the forms of the table, or use the one that `columns` describes."""
        self._columns, self._turns = columns, turns
        self._rounds = RoundsReader(turns, columns.history, columns.prompt)
        own = _own_form(columns)
        self._ignore = frozenset(columns.ignore)
        self._named = own is not None
        self._forms = FORMS.forms if own is None else (own,)
        self._known: dict[tuple[str, ...], list[Form]] = {}
        # Every form under the members of which it needs one: those of its turns, its question or its answer.
        self._by_member: dict[str, list[tuple[int, int]]] = {}
        for number, form in enumerate(self._forms):
            for name in form.turns or (() if columns.prompt else form.question) or form.answer:
                self._by_member.setdefault(name, []).append((form.order, number))

    def read(self, values: Mapping[str, Any], images: ListedImages) -> FormTurns:
        """The turns of a row by the form that fits it.

        Args:
            values: of the row's members that have one.
            images: that the row lists.

        Raises:
            RowError: unknown_form, ambiguous_form (two fit and differ, or a text is left over), missing_member, or an
                error of the form's reader.
        """
        fits: list[FormTurns] = []
        order = 0
        for form in self._candidates(values):
            if fits and form.order != order:
                break
            order = form.order
            if form.kind == "turns":
                fits += self._list_of_turns(form, values, images)
            elif self._rounds.fits(form, values) and (form.kind != "caption" or images.listed):
                notes: list[Note] = []
                read: set[str] = set()
                fits.append(FormTurns(form.name, self._rounds.turns(form, values, images, notes, read), notes, read))
                if not self._named:
                    self._refuse_other_texts(form, values, read)
        if not fits:
            raise self._unknown(values)
        return fits[0] if len(fits) == 1 else _agreed(fits)

    def _candidates(self, values: Mapping[str, Any]) -> list[Form]:
        """The forms that a row with members of these names may have, in the order in which they are tried."""
        names = tuple(values)
        candidates = self._known.get(names)
        if candidates is None:
            numbers = {each for name in names if name in self._by_member for each in self._by_member[name]}
            candidates = [self._forms[number] for _, number in sorted(numbers)]
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[names] = candidates
        return candidates

    def _list_of_turns(self, form: Form, values: Mapping[str, Any], images: ListedImages) -> list[FormTurns]:
        """The turns by every member of the form that holds a list of them; mostly one."""
        fits = []
        for name in form.turns:
            if name not in values:
                continue
            value = values[name]
            if type(value) is not list:
                value = as_list(value)
            if not isinstance(value, list | tuple) or (form.order > 1 and not _may_be_turns(value)):
                continue
            notes: list[Note] = []
            turns = self._turns.turns(value, name, images, notes, form.plain)
            read = {name}
            for answer in form.answer:
                if answer in values:
                    read.add(answer)
                    turns += self._rounds.answer(values[answer], answer, images, notes)
            fits.append(FormTurns(form.name, turns, notes, read))
            if self._named or _HISTORY.isdisjoint(values):
                continue
            if left := _HISTORY.intersection(values) - self._ignore:
                raise RowError(
                    "ambiguous_form", f"{min(left)!r} beside {name!r}: add it to `columns: {{ignore: [...]}}`"
                )
        return fits

    def _refuse_other_texts(self, form: Form, values: Collection[str], read: set[str]) -> None:
        """Raise RowError if a text that belongs to a conversation stands in a further member."""
        others = _TEXTS.intersection(values).difference(read)
        if others and (others := others.difference(form.answer, self._ignore)):
            raise RowError(
                "ambiguous_form",
                f"{', '.join(sorted(others)[:4])} beside {', '.join(sorted(read)[:4])}: name the members of the "
                "conversation with `columns:` (question, context, answer)",
            )

    def _unknown(self, values: Mapping[str, Any]) -> RowError:
        """The error for a row that no form fits."""
        columns = self._columns
        wanted = [name for name in (columns.messages, columns.question, columns.answer) if name]
        absent = [name for name in wanted if name not in values]
        if absent:
            return RowError("missing_member", f"no value in {', '.join(absent)}; the row has {members_of(values)}")
        for form in self._forms:
            for name in form.turns:
                if form.order == 1 and name in values:
                    return RowError("bad_row", f"{name!r:.40} is {shown(values[name])}, not a list of turns")
        return RowError(
            "unknown_form",
            f"no question and answer: the row has the members {members_of(values)}; name them with `columns:`",
        )


def _own_form(columns: ColumnsConfig) -> Form | None:
    """The form that `columns` describes; None if it leaves the recognition to the table."""
    if columns.messages:
        answer = (columns.answer,) if columns.answer else ()
        return _form(kind="turns", turns=(columns.messages,), answer=answer, plain=True)
    if not (columns.question or columns.context or columns.answer or columns.prompt):
        return None
    usual = next(form for form in FORMS.forms if form.kind == "rounds" and form.only_one)
    caption = next(form for form in FORMS.forms if form.kind == "caption")
    question = (columns.question,) if columns.question else usual.question
    answers = (columns.answer,) if columns.answer else (*usual.answer, *(caption.answer if columns.prompt else ()))
    context: tuple[str, ...] = (columns.context,) if columns.context else ()
    if not context:
        context = next((form.context for form in FORMS.forms if columns.question in form.question), ())
    context = tuple(name for name in context if name not in (columns.question, columns.answer))
    options = usual.options
    return _form(kind="rounds", question=question, context=context, answer=answers, options=options, only_one=True)


def _form(**members: Any) -> Form:
    # The configuration may put an answer after a list of turns, which no form of the table has.
    return Form.model_construct(name=_OWN_FORM, order=1, about="the members that `columns:` names", **members)


def _may_be_turns(value: list[Any] | tuple[Any, ...]) -> bool:
    return all(isinstance(each, str | dict) for each in value)


def _agreed(fits: list[FormTurns]) -> FormTurns:
    """The first of several forms that fit a row, if all give the same texts.

    Raises:
        RowError: ambiguous_form.
    """
    first = fits[0]
    for other in fits[1:]:
        if _texts(other.turns) != _texts(first.turns):
            names = " and ".join(sorted(first.read | other.read)[:6])
            raise RowError(
                "ambiguous_form",
                f"{names} give different conversations: choose with `columns:` (messages, or question and answer)",
            )
        first.read.update(other.read)
    return first


def _texts(turns: list[Turn]) -> list[tuple[str, str]]:
    """Roles and texts of user and assistant without whitespace, to compare two forms of a row."""
    return [
        (turn.role, "".join("".join(part.split()) for part in turn.parts if isinstance(part, str)))
        for turn in turns
        if turn.role != "system"
    ]
