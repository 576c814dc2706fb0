"""What is known of own data before anything is built: the result of `inspect_data`, without how it is shown."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scripts.adapters.conversion import MEANT, Reasons
from scripts.config.custom import CustomDatasetConfig


class InspectedFile(NamedTuple):
    """A file of rows: how many were read, and whether these are all."""

    name: str
    rows: int
    complete: bool


@dataclass(frozen=True)
class ShownPart:
    """A stretch of a conversation as it is trained on.

    `kind` is header, text, answer or image; an image has its name or origin as `text`, and its encoded
    bytes if they could be read.
    """

    kind: str
    text: str
    image: bytes | None = None


@dataclass(frozen=True)
class ShownConversation:
    """One conversation: file and row that it comes from, the form of the row, and what the model reads."""

    origin: str
    form: str
    parts: tuple[ShownPart, ...]
    tokens: int
    images: int


class Hint(NamedTuple):
    """What to do about rows that are lost for one reason: a sentence, and a line of configuration or command, or ""."""

    advice: str
    line: str = ""


@dataclass
class Survey:
    """What the first rows of own data are.

    Attributes:
        path: what was inspected.
        name: of the dataset in the recipe.
        config: the section `custom.<name>` that reads it.
        files: those that rows were read from.
        forms: rows by the form that was recognised.
        members: rows by member of a row that has a value.
        ignored: those of them that mean nothing to training.
        roles: turns by role.
        unsupervised: answers that are shown, but not trained on.
        image_files: images that the folders and archives hold.
        images: images of rows by where they are: named, inside of rows, at addresses.
        dropped, noted: rows by reason, with examples.
        hints: by reason of a loss.
        tokens, n_images: of every conversation.
        tokenizer: that counted the tokens; "": they are estimated.
        beyond: conversations beyond a limit of the recipe, by the limit and the key that sets it.
        chosen_images: why `config` names a folder of images that the user has not named, or "".
        shown: conversations as they are trained on.
    """

    path: str
    name: str
    config: CustomDatasetConfig
    files: list[InspectedFile] = field(default_factory=list)
    forms: Counter[str] = field(default_factory=Counter)
    members: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    unsupervised: int = 0
    image_files: int = 0
    images: Counter[str] = field(default_factory=Counter)
    dropped: Reasons = field(default_factory=Reasons)
    noted: Reasons = field(default_factory=Reasons)
    hints: dict[str, Hint] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    n_images: list[int] = field(default_factory=list)
    tokenizer: str = ""
    beyond: dict[str, int] = field(default_factory=dict)
    chosen_images: str = ""
    shown: list[ShownConversation] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows that were read."""
        return sum(file.rows for file in self.files)

    @property
    def complete(self) -> bool:
        """Whether these are all rows."""
        return all(file.complete for file in self.files)

    @property
    def lost(self) -> int:
        """Rows that cannot be used."""
        return self.dropped.total

    @property
    def lost_share(self) -> float:
        """The share of them, without those that the rows themselves leave out, as `convert` judges it."""
        meant = sum(entry["count"] for reason, entry in self.dropped.as_dict().items() if reason in MEANT)
        return (self.lost - meant) / max(1, self.rows - meant)

    @property
    def folder(self) -> Path:
        """The folder of the files and images."""
        return Path(self.config.folder)


def quantile(values: list[int], share: float) -> int:
    """The smallest of `values` that is not below a share of them; 0 without values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0
