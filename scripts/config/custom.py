"""Settings of a custom dataset: its files, what its columns mean, what is kept for evaluation, and its terms."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from scripts.config.base import Section
from scripts.config.paths import Below, Given, is_archive, without_archive_extension

_ONE_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else () if value is None else value


class ColumnsConfig(Section):
    """What the members of a row mean, where their names are not among the usual ones. All are optional.

    A name with dots is that of a member inside of objects: `meta.caption`.
    """

    messages: str | None = None
    """Member with the turns: a list of objects, or a list of pairs."""
    role: str | None = None
    """Member of a turn with its role."""
    content: str | None = None
    """Member of a turn with its text or parts."""
    roles: dict[str, Literal["user", "assistant", "system"]] = Field(default={})
    """Role by the word in the file that stands for it: `{customer: user, agent: assistant}`."""
    question: str | None = None
    """Member with the question, where a row is one question and its answer."""
    context: str | None = None
    """Member with text that belongs to the question and is put after it, on a new line."""
    answer: str | None = None
    """Member with the answer."""
    history: str | None = None
    """Member with the earlier rounds, as pairs."""
    system: str | None = None
    """Member with the system text."""
    images: str | None = None
    """Member with the image or images."""
    image_tag: str | None = None
    """Text that marks the place of an image, if it is not `<image>`."""
    prompt: str | None = None
    """Question that is asked about every row, for rows of an image and its caption."""
    id: str | None = None
    """Member with the id of a row."""
    ignore: tuple[str, ...] = ()
    """Members that mean nothing to training; others that are not understood are counted in the report."""


class SplitConfig(Section):
    """Which rows are kept for evaluation, beside those that show an image that `holdout` keeps. One of these."""

    rows: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the rows, chosen by a hash of their content."""
    column: str | None = None
    """Member of a row with its split; rows of `values` are kept for evaluation."""
    values: tuple[str, ...] = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "heldout")
    """Names of the splits that are kept for evaluation, in any case."""
    files: tuple[Below, ...] = ()
    """Files below the folder, all of whose rows are kept for evaluation."""

    @model_validator(mode="after")
    def _one_way(self) -> "SplitConfig":
        if sum((self.rows is not None, self.column is not None, bool(self.files))) != 1:
            raise ValueError("should have one of `rows`, `column` and `files`")
        return self


class OwnRowsConfig(Section):
    """How the rows of a custom dataset are read."""

    columns: ColumnsConfig = ColumnsConfig()
    """What the members of a row mean, where their names are not among the usual ones."""
    split: SplitConfig | None = None
    """Which rows are kept for evaluation. Empty: those that show an image that `holdout` keeps."""
    entry: str | None = None
    """Entry of LLaMA-Factory's `dataset_info.json` in `folder`, which names the file of rows and its columns. Empty:
    the entry with the name of the dataset, or the only one, if there is such a file and `files` is empty."""


class CustomDatasetConfig(OwnRowsConfig):
    """Your conversations and their images, in any of the usual forms (docs/forms.md)."""

    folder: Given
    """Folder with the files and images."""
    files: tuple[Below, ...] = ()
    """Files of conversations below `folder`; patterns such as `part-*.jsonl.gz` and `**/train*.json`; or folders.
    Empty: all that `folder` holds."""
    images: Annotated[tuple[Below, ...], BeforeValidator(_listed), WithJsonSchema(_ONE_OR_MORE)] = ()
    """Folder of images below `folder`, or an archive of them (.zip, .tar, .tar.gz), or a list of these; rows name
    images by their path in it. Empty: images are looked for below `folder` itself."""
    licence: str = "the user's own"
    """Free text; it is written into every record."""
    terms: tuple[str, ...] = ("custom",)
    """The terms as keywords, which `licences` can allow or refuse."""

    @model_validator(mode="after")
    def _files_or_entry(self) -> "CustomDatasetConfig":
        if self.files and self.entry:
            raise ValueError("should have `files` or `entry`, whose file is named in dataset_info.json, but not both")
        return self

    @field_validator("images")
    @classmethod
    def _folders_end_in_a_slash(cls, images: tuple[str, ...]) -> tuple[str, ...]:
        places = tuple(image if image.endswith("/") or is_archive(image) else f"{image}/" for image in images)
        folders = [without_archive_extension(place) for place in places]
        if repeated := next((folder for folder in folders if folders.count(folder) > 1), None):
            raise ValueError(f"has two entries that stand for the folder {repeated!r}: rename one of them")
        return places
