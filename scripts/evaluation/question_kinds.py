"""Kinds of questions, so that accuracy can be reported for each kind.

Reads `kinds.json`, a list of {"name", "pattern", "images", "scored"}: a question has the first kind whose regular
expression matches somewhere in it; "images" is whether "one" image or "several" decide the answer; answers of a kind
that is not "scored" (captions, for instance) have no single correct wording and count only in the loss. Without such a
file every dataset is a kind.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import read_json

ONE, SEVERAL = "one", "several"
GROUPS = (ONE, SEVERAL)
_KEYS = {"name", "pattern", "images", "scored"}


@dataclass(frozen=True)
class QuestionKind:
    """A kind of question. `images` is its group: "one", "several", or `None` for neither."""

    name: str
    images: str | None = None
    scored: bool = True
    pattern: str = ""

    def matches(self, question: str) -> bool:
        """Whether the question is of this kind."""
        return re.search(self.pattern, question) is not None


OTHER = QuestionKind("other")


def read_kinds(path: str | Path) -> list[QuestionKind]:
    """Read `kinds.json`.

    Raises:
        UserError: the file is not such a list, or a pattern is not a regular expression; the message has the index of
            the entry.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must be a non-empty JSON list of kinds of questions")
    kinds = [_kind(entry, f"{path}: kind {index}") for index, entry in enumerate(entries)]
    if len({kind.name for kind in kinds} | {OTHER.name}) <= len(kinds):
        raise UserError(
            f"{path}: the names of kinds must be unique; {OTHER.name!r} is reserved for questions that match no kind"
        )
    return kinds


def classify(question: str, kinds: Sequence[QuestionKind], dataset: str, images: int) -> QuestionKind:
    """The kind of a question about a conversation with `images` images so far.

    Without `kinds` the dataset is the kind, and its group follows from the number of images. A question that matches no
    kind has the kind "other", which is scored and belongs to no group.
    """
    if not kinds:
        return QuestionKind(dataset, (None, ONE, SEVERAL)[min(images, 2)])
    return next((kind for kind in kinds if kind.matches(question)), OTHER)


def _kind(entry: Any, where: str) -> QuestionKind:
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        raise UserError(f"{where} must be an object with exactly the keys {', '.join(sorted(_KEYS))}")
    name, pattern = entry["name"], entry["pattern"]
    if not isinstance(name, str) or not name or not isinstance(pattern, str) or not isinstance(entry["scored"], bool):
        raise UserError(f"{where}: name and pattern must be strings, scored must be true or false")
    if entry["images"] not in GROUPS:
        raise UserError(f'{where} ({name}): images must be "one" or "several", not {entry["images"]!r}')
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where} ({name}): pattern {pattern!r} is not a regular expression: {error}") from None
    return QuestionKind(name, entry["images"], entry["scored"], pattern)
