"""Questions and answers of own data that stand in members of a row: alpaca, query and response, VQA, captions."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import Turn
from scripts.adapters.own.forms import FORMS, Form
from scripts.adapters.own.image_values import ImageValue
from scripts.adapters.own.turn_reader import TurnReader
from scripts.adapters.own.values import as_list, as_text, has_value, shown
from scripts.adapters.raw import Note

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ANSWER_MEMBERS = ("answer", "text", "value")
"""Members of the objects of a list of answers."""


class RoundsReader:
    """Reads one question and its answer from a row, with the earlier rounds."""

    def __init__(self, turns: TurnReader, history: str | None, prompt: str | None) -> None:
        """Read turns with `turns`, earlier rounds from the member `history`, and ask `prompt`, if any, about all rows."""
        self._turns = turns
        self._history = (history,) if history else FORMS.row.history
        self._prompt = prompt

    def fits(self, form: Form, values: Mapping[str, Any]) -> bool:
        """Whether a row has what the form needs."""
        if not any(name in values for name in form.answer):
            return False
        return form.kind == "caption" or self._prompt is not None or any(name in values for name in form.question)

    def turns(
        self, form: Form, values: Mapping[str, Any], named: Mapping[str, ImageValue], notes: list[Note], read: set[str]
    ) -> list[Turn]:
        """The turns of a row that the form fits.

        Args:
            form: of kind rounds or caption.
            values: of the row's members that have one.
            named: images by the marker that stands for each in texts.
            notes: what is ignored or chosen is appended.
            read: names of the members that are understood are added.

        Raises:
            RowError: bad_row, ambiguous_form, unsupported_options and others.
        """
        turns: list[Turn] = []
        for name in self._history:
            if name in values:
                read.add(name)
                turns += self._turns.turns(as_list(values[name]), name, named, notes)
        answer_name = self._one_of(form, form.answer, values, read)
        answer = values[answer_name]
        if self._prompt is not None:
            question: Any = self._prompt
        elif form.kind == "caption":
            question = FORMS.default_prompt
            notes.append(
                Note("default_prompt", f"the question is {question!r}: choose it with `columns: {{prompt: ...}}`")
            )
        else:
            name = self._one_of(form, form.question, values, read)
            question = self._with_context(form, as_list(values[name]), name, values, read)
        options = next((name for name in form.options if name in values), None)
        if options is not None:
            read.add(options)
            question, answer = _with_options(question, values[options], answer, notes)
        turns += self._side("user", question, named, notes)
        return turns + self.answer_turns(answer, answer_name, named, notes)

    def answer_turns(self, answer: Any, name: str, named: Mapping[str, ImageValue], notes: list[Note]) -> list[Turn]:
        """The turn of an answer, or the turns that it is, as `turns`; `name` is that of its member."""
        return self._side("assistant", self._best_answer(answer, name, notes), named, notes)

    def _one_of(self, form: Form, names: tuple[str, ...], values: Mapping[str, Any], read: set[str]) -> str:
        present = [name for name in names if name in values]
        if form.only_one and any(values[name] != values[present[0]] for name in present[1:]):
            raise RowError(
                "ambiguous_form",
                f"{' and '.join(present[:4])} may both be meant: choose with `columns:` (question, answer, prompt)",
            )
        read.update(present if form.only_one else present[:1])
        return present[0]

    def _with_context(self, form: Form, question: Any, name: str, values: Mapping[str, Any], read: set[str]) -> Any:
        context = next((name for name in form.context if name in values), None)
        if context is None:
            return question if isinstance(question, list | dict) else as_text(question, name)
        read.add(context)
        return f"{as_text(question, name)}\n{as_text(values[context], context)}"

    def _best_answer(self, answer: Any, name: str, notes: list[Note]) -> Any:
        """The answer itself or, of a list of answers, the most frequent one; the first of equally frequent ones."""
        answer = as_list(answer)
        if isinstance(answer, dict) and not self._turns.is_turn(answer):
            answer = next((answer[key] for key in _ANSWER_MEMBERS if has_value(answer.get(key))), answer)
        if not isinstance(answer, list) or any(self._turns.is_turn(each) for each in answer) or _are_parts(answer):
            return answer if isinstance(answer, list | dict) else as_text(answer, name)
        texts = []
        for each in answer:
            if isinstance(each, dict):
                each = next((each[key] for key in _ANSWER_MEMBERS if has_value(each.get(key))), None)
            texts.append(as_text(each, name))
        best, count = Counter(texts).most_common(1)[0]
        if count < len(texts):
            notes.append(Note("several_answers", f"{count} of {len(texts)} answers in {name} are {shown(best)}"))
        return best

    def _side(self, role: Any, value: Any, named: Mapping[str, ImageValue], notes: list[Note]) -> list[Turn]:
        """The turns that a question or an answer gives: one text, or turns of their own."""
        if isinstance(value, str):
            return [self._turns.turn(role, value, named)]
        if self._turns.is_turn(value):
            value = [value]
        if isinstance(value, list) and value and self._turns.is_turn(value[0]):
            return self._turns.turns(value, "prompt" if role == "user" else "completion", named, notes)
        return [self._turns.content_turn(role, value, named, notes)]


def _are_parts(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(each, dict) and "type" in each for each in values)


def _with_options(question: Any, options: Any, answer: Any, notes: list[Note]) -> tuple[Any, Any]:
    """The question with its options, one a line with its letter, and the answer as letter or text.

    Raises:
        RowError: unsupported_options (they are no list of texts, or the answer is none of them).
    """
    options = as_list(options)
    if isinstance(options, dict):
        letters, texts = list(options), list(options.values())
    else:
        texts = options if isinstance(options, list) else []
        letters = list(_LETTERS[: len(texts)])
    usable = isinstance(question, str) and 2 <= len(texts) == len(letters) and letters == list(_LETTERS[: len(texts)])
    if not usable or not all(isinstance(text, str) for text in texts):
        raise RowError("unsupported_options", "the options of the question are not a list of 2 to 26 texts")
    if type(answer) is int and 0 <= answer < len(texts):
        answer = letters[answer]
    if answer not in texts and answer not in letters:
        raise RowError(
            "unsupported_options", f"the answer {shown(answer)} is none of {len(texts)} options, nor the letter of one"
        )
    notes.append(Note("options_listed", "the options are put after the question"))
    lines = [f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True)]
    return "\n".join([question, *lines]), answer
