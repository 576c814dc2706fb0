"""Questions and answers of own data that stand in members of a row: alpaca, query and response, VQA, captions."""

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import takewhile
from typing import Any

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import Role, Turn
from scripts.adapters.own.forms import FORMS, Form
from scripts.adapters.own.listed_images import ListedImages
from scripts.adapters.own.turn_reader import TurnReader
from scripts.adapters.own.values import as_list, as_text, has_value, shown
from scripts.adapters.raw import Note

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERED = tuple(
    tuple(map(pattern.format, letters))
    for pattern in FORMS.row.lettered_options
    for letters in (_LETTERS, _LETTERS.lower())
)
"""Names of members with one option each."""
_ANSWER_MEMBERS = ("answer", "text", "value")
"""Members of the objects of a list of answers."""
_SEVERAL = frozenset({"questions", "answers", "captions"})
"""Members that hold several texts, which tables without lists write as one text."""


class RoundsReader:
    """Reads one question and its answer from a row, with the earlier rounds."""

    def __init__(self, turns: TurnReader, history: str | None, prompt: str | None) -> None:
        """Read with `turns`, earlier rounds from the member `history`, and ask `prompt`, if any, about all rows."""
        self._turns = turns
        self._history = (history,) if history else FORMS.row.history
        self._prompt = prompt

    def fits(self, form: Form, values: Collection[str]) -> bool:
        """Whether a row with `values` has what the form needs, its images apart."""
        if not any(name in values for name in form.answer):
            return False
        return form.kind == "caption" or self._prompt is not None or any(name in values for name in form.question)

    def turns(
        self, form: Form, values: Mapping[str, Any], images: ListedImages, notes: list[Note], read: set[str]
    ) -> list[Turn]:
        """The turns of a row that the form fits.

        Args:
            form: of kind rounds or caption.
            values: of the row's members that have one.
            images: that the row lists.
            notes: what is ignored or chosen is appended.
            read: names of the members that are understood are added.

        Raises:
            RowError: bad_row, ambiguous_form, unsupported_options, and those of `TurnReader.turns`.
        """
        turns: list[Turn] = []
        for name in self._history:
            if name in values:
                read.add(name)
                turns += self._turns.turns(as_list(values[name]), name, images, notes)
        answer_name = _one_of(form, form.answer, values, read)
        answer = values[answer_name]
        if self._prompt is not None:
            question: Any = self._prompt
        elif form.kind == "caption":
            question = FORMS.default_prompt
            notes.append(Note("default_prompt", f"{question!r} is asked; `columns: {{prompt: ...}}` asks another"))
        else:
            question = self._with_context(form, values, read)
        options = _options(form, values, read)
        if options is not None:
            question, answer = _with_options(question, options, answer)
            notes.append(Note("options_listed", "the options are put after the question"))
        questions = _texts_of(question)
        if len(questions) > 1:
            answers = _texts_of(self._listed(answer, answer_name))
            if len(answers) != len(questions):
                raise RowError("bad_row", f"{len(questions)} questions, but {len(answers)} answers")
            for each, its_answer in zip(questions, answers, strict=True):
                turns += [
                    self._turns.turn("user", each, images, notes),
                    self._turns.turn("assistant", its_answer, images, notes),
                ]
            return turns
        turns += self._side("user", question, images, notes)
        return turns + self.answer(answer, answer_name, images, notes)

    def answer(self, value: Any, name: str, images: ListedImages, notes: list[Note]) -> list[Turn]:
        """The turns that the value of a member `name` with an answer is: mostly one.

        Raises:
            RowError: as `turns`.
        """
        return self._side("assistant", self._best_answer(value, name, notes), images, notes)

    def _best_answer(self, value: Any, name: str, notes: list[Note]) -> Any:
        """The answer itself or, of a list of answers, the most frequent one; the first of equally frequent ones."""
        value = self._listed(value, name)
        if isinstance(value, dict):
            value = value if self._turns.is_turn(value) else _text_of(value)
        if not isinstance(value, list):
            return value if isinstance(value, dict) else as_text(value, name)
        if any(isinstance(each, dict) and ("type" in each or self._turns.is_turn(each)) for each in value):
            return value
        if not value:
            raise RowError("bad_row", f"{name!r:.40} has no answer")
        texts = [as_text(_text_of(each), name) for each in value]
        best, count = Counter(texts).most_common(1)[0]
        if count < len(texts):
            notes.append(Note("several_answers", f"{count} of {len(texts)} answers in {name!s:.40} are {shown(best)}"))
        return best

    def _with_context(self, form: Form, values: Mapping[str, Any], read: set[str]) -> Any:
        """The question, with the row's context after it on a new line."""
        name = _one_of(form, form.question, values, read)
        question = self._listed(values[name], name)
        context = next((each for each in form.context if each in values), None)
        if context is not None:
            read.add(context)
            return f"{as_text(question, name)}\n{as_text(values[context], context)}"
        return question if isinstance(question, list | dict) else as_text(question, name)

    def _listed(self, value: Any, name: str) -> Any:
        """`value` as a list, where it is one in another form (`as_list`).

        A text such as "[1, 2]" may be the answer itself. It is a list only in a member that holds several texts, or if
        its elements are turns.
        """
        listed = as_list(value)
        if isinstance(value, str) and isinstance(listed, list) and name not in _SEVERAL:
            are_turns = listed and all(map(self._turns.is_turn_with_content, listed))
            return listed if are_turns else value
        return listed

    def _side(self, role: Role, value: Any, images: ListedImages, notes: list[Note]) -> list[Turn]:
        """The turns that a question or an answer gives: one content, or turns of their own."""
        if self._turns.is_turn(value):
            value = [value]
        if isinstance(value, list) and value and self._turns.is_turn(value[0]):
            return self._turns.turns(value, "prompt" if role == "user" else "completion", images, notes)
        return [self._turns.turn(role, value, images, notes)]


def _texts_of(value: Any) -> list[str]:
    """A list of texts, or none if `value` is anything else."""
    return value if isinstance(value, list) and _are_texts(value) else []


def _text_of(answer: Any) -> Any:
    """The text of an object of a list of answers; anything else unchanged."""
    if not isinstance(answer, dict):
        return answer
    return next((answer[name] for name in _ANSWER_MEMBERS if has_value(answer.get(name))), answer)


def _one_of(form: Form, names: tuple[str, ...], values: Mapping[str, Any], read: set[str]) -> str:
    """The first of `names` that has a value.

    Raises:
        RowError: ambiguous_form (others have other values, in a form where they must not).
    """
    present = [name for name in names if name in values]
    if form.only_one and any(values[name] != values[present[0]] for name in present[1:]):
        raise RowError(
            "ambiguous_form",
            f"{' and '.join(present[:4])} may be meant: choose with `columns:` (question, answer, or prompt)",
        )
    read.update(present if form.only_one else present[:1])
    return present[0]


def _options(form: Form, values: Mapping[str, Any], read: set[str]) -> Any:
    """The options of a question: the value of one member, or by letter those of members of their own; None if none."""
    name = next((name for name in form.options if name in values), None)
    if name is not None:
        read.add(name)
        return as_list(values[name])
    for names in _LETTERED if form.options else ():
        if names[0] in values and names[1] in values:
            present = list(takewhile(lambda each: each in values, names))
            read.update(present)
            return {letter: as_text(values[each], each) for letter, each in zip(_LETTERS, present, strict=False)}
    return None


def _with_options(question: Any, options: Any, answer: Any) -> tuple[Any, Any]:
    """The question with its options, one a line with its letter, and the answer as letter or text.

    Raises:
        RowError: unsupported_options (they are no list of texts, or the answer is none of them).
    """
    texts = list(options.values()) if isinstance(options, dict) else options
    letters = list(_LETTERS[: len(texts)]) if isinstance(texts, list) else []
    if isinstance(options, dict) and list(options) != letters:
        letters = []
    if not isinstance(question, str) or len(letters) < 2 or len(texts) != len(letters) or not _are_texts(texts):
        raise RowError("unsupported_options", "the options of the question should be a list of 2 to 26 texts")
    if type(answer) is int and 0 <= answer < len(texts):
        answer = letters[answer]
    if not isinstance(answer, str) or (answer not in texts and answer not in letters):
        raise RowError(
            "unsupported_options", f"the answer is {shown(answer)}: neither an option nor its letter or number"
        )
    lines = [f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True)]
    return "\n".join([question, *lines]), answer


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(each, str) for each in values)
