"""Which kind of question a question is, so that accuracy can be told apart by what was asked.

Reads `kinds.json`, a list of {"name", "pattern", "images", "scored"}: the first kind whose regular expression is found
in the question wins; "images" says whether "one" image or "several" decide the answer; answers of a kind that is not
"scored" (captions, say) have no single right wording and count in the loss only. Data without such a file has one kind
per dataset.
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
    """A kind of question. `images` is "one", "several", or `None` for a kind that belongs to neither group."""

    name: str
    images: str | None = None
    scored: bool = True
    pattern: str = ""

    def asks(self, question: str) -> bool:
        """Whether the question is of this kind."""
        return re.search(self.pattern, question) is not None


OTHER = QuestionKind("other")


def read_kinds(path: str | Path) -> list[QuestionKind]:
    """Read `kinds.json`.

    Raises:
        UserError: the file is not such a list, or a pattern is not a regular expression; the message names the entry.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must be a non-empty JSON list of kinds of questions")
    kinds = [_kind(entry, f"{path}: kind {place}") for place, entry in enumerate(entries)]
    if len({kind.name for kind in kinds} | {OTHER.name}) <= len(kinds):
        raise UserError(f"{path}: every kind needs a name of its own; {OTHER.name!r} is taken for what matches none")
    return kinds


def classify(question: str, kinds: Sequence[QuestionKind], dataset: str, images: int) -> QuestionKind:
    """The kind of a question that is asked while `images` images are in the conversation.

    Without `kinds` the dataset is the kind, and the group follows from the images in view. A question that no kind
    claims is of kind "other", which is scored by itself and belongs to no group.
    """
    if not kinds:
        return QuestionKind(dataset, (None, ONE, SEVERAL)[min(images, 2)])
    return next((kind for kind in kinds if kind.asks(question)), OTHER)


def _kind(entry: Any, where: str) -> QuestionKind:
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        raise UserError(f"{where} must be an object with exactly the keys {', '.join(sorted(_KEYS))}")
    name, pattern = entry["name"], entry["pattern"]
    if not isinstance(name, str) or not name or not isinstance(pattern, str) or not isinstance(entry["scored"], bool):
        raise UserError(f"{where}: name and pattern must be texts, scored must be true or false")
    if entry["images"] not in GROUPS:
        raise UserError(f'{where} ({name}): images must be "one" or "several", not {entry["images"]!r}')
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where} ({name}): pattern {pattern!r} is not a regular expression: {error}") from None
    return QuestionKind(name, entry["images"], entry["scored"], pattern)
