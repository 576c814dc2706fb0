"""custom: conversations that a user provides, in any of the forms of scripts/adapters/own/forms.yaml.

`own/` reads what a row means; here its images are found, its turns become rounds in which every image has a slot where
it was written, and what is ignored or lost is counted under the row's file. Images that a row lists, and that no
placeholder shows, are shown before the first question. Texts are kept as they are, stripped at the ends of a turn.
"""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from scripts.adapters.base import Dropped, RowError
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.own.conversation import OwnConversation, Turn
from scripts.adapters.own.conversation_reader import RowReader, named_members
from scripts.adapters.own.image_search import OwnImages
from scripts.adapters.own.image_values import ImageValue
from scripts.adapters.own.plain_rows import PlainRows
from scripts.adapters.own.splits import OwnSplits
from scripts.adapters.own.values import has_member, has_value, one_line
from scripts.adapters.raw import Broken, Note, RawFiles, RawRow
from scripts.common.errors import UserError
from scripts.common.records import Record, Round, shown_slot
from scripts.config.custom import ColumnsConfig, OwnRowsConfig
from scripts.config.registry import Dataset

_IGNORED = "ignored:"
_MAX_IGNORED = 100
"""Different names of ignored members that are counted each by itself."""
_MAX_MEMBERS = 20
"""Names of members that an error lists."""


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """The conversations of all files of the dataset.

    Raises:
        UserError: `columns` names a member that no row has, or `split` keeps nothing.
    """
    (source,) = raw.folders
    dataset = Dataset.model_validate(raw.manifest(source)["dataset"])
    own = dataset.own or OwnRowsConfig()
    adapter = _Adapter(source, own, OwnImages.from_raw(images, raw, source))
    for path in dataset.files:
        for row in raw.rows(path):
            file = row.file or path
            label = f"{file} row {row.id}"
            try:
                results = adapter.convert(row, file, label)
            except RowError as error:
                yield Dropped(error.reason, one_line(f"{label}: {error.detail}"))
            else:
                yield from results
    adapter.check()


class _Adapter:
    """Makes records of the rows of one dataset."""

    def __init__(self, source: str, own: OwnRowsConfig, images: OwnImages) -> None:
        self._plain, self._reader, self._images = PlainRows(own), RowReader(own), images
        self._splits = OwnSplits(source, own.split)
        self._named = _NamedMembers(source, own.columns)
        self._ignored: set[str] = set()

    def convert(self, row: RawRow, file: str, label: str) -> list[Record | Note]:
        """Notes on a row, and its record; `label` names the row in the examples of a report.

        Raises:
            RowError: the row cannot be used.
        """
        if isinstance(row.value, Broken):
            raise RowError(*row.value)
        self._named.see(row.value)
        plain = self._plain.read(row.value)
        if plain is not None:
            return self._results(row, file, label, plain.images, plain.rounds, id_=plain.id)
        conversation = self._reader.read(row.value)
        values, rounds = rounds_of(conversation)
        return self._results(
            row,
            file,
            label,
            values,
            rounds,
            id_=conversation.id,
            split=conversation.split,
            system=_system(conversation),
            notes=conversation.notes,
        )

    def _results(
        self,
        row: RawRow,
        file: str,
        label: str,
        values: Sequence[ImageValue],
        rounds: tuple[Round, ...],
        *,
        id_: str,
        split: str = "",
        system: str = "",
        notes: Iterable[Note] = (),
    ) -> list[Record | Note]:
        beside = _folder(file)
        try:
            found = tuple([self._images.find(value, beside) for value in values])
        finally:
            image_notes = self._images.take_notes()
        record_split, split_notes = self._splits.split_of(file, split, label)
        results: list[Record | Note] = [self._labelled(note, label) for note in (*notes, *image_notes)]
        results += split_notes
        results.append(Record(id_ or f"{file}-{row.id}", found, rounds, split=record_split, system=system))
        return results

    def check(self) -> None:
        """Check, after the last row, that the configuration has fitted the rows.

        Raises:
            UserError: it names members that no row has, or keeps nothing for evaluation.
        """
        self._named.check()
        self._splits.check()

    def _labelled(self, note: Note, label: str) -> Note:
        # Names of members may be of any length and, in damaged files, not be UTF-8.
        reason = one_line(note.reason, 80).encode("utf-8", "backslashreplace").decode()
        if reason.startswith(_IGNORED) and reason not in self._ignored:
            if len(self._ignored) < _MAX_IGNORED:
                self._ignored.add(reason)
            else:
                return Note(f"{_IGNORED}other members", f"{label}: {reason.removeprefix(_IGNORED)}")
        return Note(reason, one_line(f"{label}: {note.example}") if note.example else label)


class _NamedMembers:
    """The members that `columns` names, until a row has them."""

    def __init__(self, source: str, columns: ColumnsConfig) -> None:
        self._source = source
        self._missing = {name: setting for setting, name in named_members(columns).items()}
        self._members: dict[str, None] = {}

    def see(self, row: Any) -> None:
        """Look at a row; that a member has no value in any row is no fault of the configuration."""
        if self._missing and isinstance(row, dict):
            for name in [name for name in self._missing if has_member(row, name)]:
                del self._missing[name]
            for name, value in row.items():
                if len(self._members) < _MAX_MEMBERS and has_value(value):
                    self._members[str(name)[:40]] = None

    def check(self) -> None:
        """Check, after the last row, that all have been seen.

        Raises:
            UserError: no row has one of them.
        """
        if self._missing:
            lines = ", ".join(f"{setting}: {name}" for name, setting in self._missing.items())
            found = ", ".join(self._members) or "none"
            raise UserError(
                f"custom.{self._source}.columns: no row has the members of `{lines}`; the rows have {found}"
            )


@lru_cache(1)
def _folder(file: str) -> str:
    """The folder of a file, ending in "/", or ""."""
    folder = posixpath.dirname(file)
    return f"{folder}/" if folder else ""


def rounds_of(conversation: OwnConversation) -> tuple[list[ImageValue], tuple[Round, ...]]:
    """The images of a conversation in the order in which they are shown, and its rounds with their slots."""
    turns = conversation.turns[1:] if conversation.turns[0].role == "system" else conversation.turns
    listed = iter(conversation.listed)
    values = list(conversation.listed) if conversation.listed and not _has_places(turns) else []
    rounds = []
    begin = 0
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        text = _with_slots(question, values, listed)
        end = len(values)
        if not text:
            text = "".join(map(shown_slot, range(begin, end)))
        images = tuple(range(begin, end)) if end > begin else ()
        rounds.append(Round((text,), (_text(answer),), images, supervised=answer.supervised))
        begin = end
    return values, tuple(rounds)


def _has_places(turns: tuple[Turn, ...]) -> bool:
    for turn in turns:
        for part in turn.parts:
            if not isinstance(part, str):
                return True
    return False


def _with_slots(turn: Turn, values: list[ImageValue], listed: Iterator[ImageValue]) -> str:
    """The text of a question; its images are appended to `values`, those without a value from `listed`."""
    parts = turn.parts
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    pieces = []
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
        else:
            pieces.append(shown_slot(len(values)))
            values.append(part.value if part.value is not None else next(listed))
    return "".join(pieces)


def _text(turn: Turn) -> str:
    return "".join([part for part in turn.parts if isinstance(part, str)])


def _system(conversation: OwnConversation) -> str:
    first = conversation.turns[0]
    return _text(first) if first.role == "system" else ""
