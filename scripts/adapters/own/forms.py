"""The table of forms (forms.yaml), typed: what the members of rows, turns and parts of own data mean.

The reader of rows is generic over it; a new form is a new entry, not new code.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from scripts.config.base import Section

Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Form(Section):
    """A form of rows, recognised by the members that have values."""

    name: str
    kind: Literal["turns", "rounds", "caption"]
    order: int
    """Forms of a lower order are tried first."""
    about: str
    documentation: tuple[str, ...] = ()
    """Addresses of public pages that describe it."""
    turns: tuple[str, ...] = ()
    """Members that may hold all turns."""
    plain: bool = False
    """Whether these may also be plain texts, of the user and the assistant in turn."""
    question: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    """Members with text that is put after the question, on a new line."""
    answer: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Members with the options of a multiple-choice question."""
    only_one: bool = False
    """Whether values in two members of the question, or of the answer, must be equal; otherwise the first counts."""

    @model_validator(mode="after")
    def _members_of_its_kind(self) -> "Form":
        has = (bool(self.turns), bool(self.question), bool(self.answer))
        if (
            has
            != {"turns": (True, False, False), "rounds": (False, True, True), "caption": (False, False, True)}[
                self.kind
            ]
        ):
            raise ValueError(f"a form of kind {self.kind!r} has other members")
        return self


class RoleWords(Section):
    """The words that stand for a role in files, in lower case. Turns of `tool` cannot be trained on."""

    user: Names
    assistant: Names
    system: Names
    tool: Names


class TurnMembers(Section):
    """Members of a turn; of several with a value the first counts."""

    role: Names
    content: Names
    images: Names
    loss: Names
    """Switches: an answer with false or 0 is shown, but not trained on."""
    masks: Names
    """Members that exclude parts of a turn from training; only false and 0 are understood."""
    tool_calls: Names
    media: Names
    """Members with media other than images."""


class PairMembers(Section):
    """Members of a pair of question and answer in a list of turns."""

    user: Names
    assistant: Names
    system: Names


class PartMembers(Section):
    """Types and members of the parts of a turn's content."""

    text: Names
    image: Names
    media: Names
    tools: Names
    text_members: Names
    image_members: Names
    media_members: Names
    tool_members: Names


class RowMembers(Section):
    """Members of a row beside its conversation."""

    id: Names
    silent: Names
    """Members that readers of files add; they are not counted as ignored."""
    history: Names
    """Members with earlier rounds."""
    system: Names
    loss: Names
    texts: Names
    """Members with texts that belong to a conversation; a row of one question in which one is left over is refused."""
    images: tuple[Names, ...]
    """Groups of members with the images; the first group with values counts."""
    names_only: Names
    """Members that give an image if their value is the name of an image file, and no other member does."""
    image_ids: Names
    """Members with ids of images, which are no names: a row that shows no image is refused."""
    media: Names
    preference: Names
    """Members of pairs of preferred and rejected answers."""
    undesirable: Names
    """Members whose value false marks an answer that should not be learned."""
    lettered_options: Names
    """Members that hold one option each of a multiple-choice question; `{}` is its letter."""
    split: Names
    """Members, in lower case, that may hold the split of a row, which counts only where the configuration names it."""
    reserved: Names
    """Members with descriptions of tools; ignored where no turn calls one."""


class Marker(Section):
    """A marker of media in text: an exact text, or a regular expression with an example."""

    text: str = ""
    pattern: str = ""
    example: str = ""
    html: bool = False
    """Whether it is also an element of HTML, which texts about HTML contain."""
    image: bool = False
    """Whether other programs use it as the placeholder of an image."""

    @property
    def regex(self) -> str:
        """A regular expression without groups that matches the marker."""
        return self.pattern or re.escape(self.text)


class FormsTable(Section):
    """All of forms.yaml."""

    forms: tuple[Form, ...]
    default_prompt: str
    """The question about an image with a caption, where the configuration has none."""
    roles: RoleWords
    turn: TurnMembers
    pair: PairMembers
    part: PartMembers
    row: RowMembers
    markers: tuple[Marker, ...]
    likely_placeholder: str
    """A regular expression of what stands for an image if a row lists images and shows none in its texts."""


def _load() -> FormsTable:
    text = Path(__file__).with_name("forms.yaml").read_text(encoding="utf-8")
    return FormsTable.model_validate(yaml.load(text, Loader=yaml.CSafeLoader))


FORMS = _load()
