"""The cases of the suite of forms: what people bring, and the conversations, drops and notes that must come out.

`cases/*.yaml` holds one form each. A case is a folder (files of rows, images, archives), the lines below
`custom.<name>` of a configuration, and what is expected. In a text, a reference stands for an image of the case:

    $path(NAME)      its absolute path
    $bytes(NAME)     its encoded bytes; the whole value
    $base64(NAME)    its bytes as base64
    $data_url(NAME)  its bytes as a data URL

Conversations are written as a reader sees them: turns of `system`, `user` or `assistant`, those of the user as a text,
or as a list of texts and `{image: NAME}`, each where it stands.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

FOLDER = Path(__file__).parent / "cases"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Drawing(_Model):
    """An image that the test draws: one colour, in the format of its name's ending unless `format` names one."""

    colour: str
    size: tuple[int, int] = (8, 8)
    format: str = ""
    mode: str = "RGB"
    damaged: bool = False
    """Whether the second half of the file is missing."""


class File(_Model):
    """A file of the folder: rows, whose form is that of its name's ending or `kind`, or a text."""

    rows: tuple[Any, ...] = ()
    text: str | None = None
    kind: str = ""
    encoding: str = "utf-8"
    splits: dict[str, tuple[Any, ...]] = Field(default={})
    """Rows by split, of a folder with several datasets saved to disk."""


def _file(value: Any) -> Any:
    """A list in a case is the rows of a file, a text the file's text."""
    return {"rows": value} if isinstance(value, list) else {"text": value} if isinstance(value, str) else value


Drawn = Annotated[Drawing, BeforeValidator(lambda value: {"colour": value} if isinstance(value, str) else value)]
"""A drawing, or its colour alone."""


class Turn(_Model):
    """One turn; `user` holds texts and `{image: NAME}`."""

    system: str | None = None
    user: str | tuple[str | dict[Literal["image"], str], ...] | None = None
    assistant: str | None = None
    supervised: bool = True


class Expected(_Model):
    """What becomes of the rows of a case.

    Attributes:
        conversations: in the order of the rows.
        dropped, notes: counts by reason; no other may occur.
        mentions: texts that the examples of dropped rows and notes contain.
        splits: of the conversations, where they matter.
        error: texts that the error contains, if nothing is built.
    """

    conversations: tuple[tuple[Turn, ...], ...] = ()
    dropped: dict[str, int] = Field(default={})
    notes: dict[str, int] = Field(default={})
    mentions: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    error: tuple[str, ...] = ()


class Case(_Model):
    """A folder, its configuration and what is expected. `embedded` images are drawn, but not written as files."""

    name: str
    about: str = ""
    files: dict[str, Annotated[File, BeforeValidator(_file)]]
    images: dict[str, Drawn] = Field(default={})
    embedded: dict[str, Drawn] = Field(default={})
    archives: dict[str, dict[str, Drawn]] = Field(default={})
    config: dict[str, Any] = Field(default={})
    expect: Expected
    shown: bool = True
    """Whether the documentation shows it."""

    def drawings(self) -> Mapping[str, Drawing]:
        """All images of the case by the name under which it mentions them: those of archives as `ARCHIVE/PATH`."""
        inside = {f"{name}/{path}": image for name, each in self.archives.items() for path, image in each.items()}
        return self.images | self.embedded | inside


class Form(_Model):
    """A form in which rows come: its name, the public pages that document it, and its cases."""

    form: str
    documentation: tuple[str, ...]
    about: str
    cases: tuple[Case, ...]


def forms() -> dict[str, Form]:
    """All forms by the name of their file, in its order."""
    loader = yaml.CSafeLoader
    return {
        path.stem: Form.model_validate(yaml.load(path.read_text(encoding="utf-8"), loader))
        for path in sorted(FOLDER.glob("*.yaml"))
    }
