"""Settings of a custom dataset: its files, what its columns mean, what is kept for evaluation, and its terms."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from scripts.config.base import Section
from scripts.config.paths import Below, Given


class ColumnsConfig(Section):
    """What the members of a row mean, where their names are not among the usual ones. All are optional."""

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


class CustomDatasetConfig(OwnRowsConfig):
    """Your conversations and their images, in any of the usual forms (docs/forms.md)."""

    folder: Given
    """Folder with the files and images."""
    files: tuple[Below, ...] = ()
    """Files of conversations below `folder`, or patterns such as `part-*.jsonl.gz`. Empty: all that `folder` holds."""
    entry: str | None = None
    """Entry of the `dataset_info.json` in `folder`, which then names files, form and columns."""
    images: Below | None = None
    """Folder of images below `folder`, ending in "/", or an archive of them (.zip, .tar); rows name images by their path
    in it. Empty: images are looked for below `folder` itself."""
    licence: str = "the user's own"
    """Free text; it is written into every record."""
    terms: tuple[str, ...] = ("custom",)
    """The terms as keywords, which `licences` can allow or refuse."""

    @field_validator("images")
    @classmethod
    def _a_folder_or_an_archive(cls, images: str | None) -> str | None:
        if images is not None and not images.endswith(("/", ".zip", ".tar", ".tar.gz", ".tgz")):
            raise ValueError('should be a folder, with a "/" at its end, or an archive (.zip, .tar)')
        return images
