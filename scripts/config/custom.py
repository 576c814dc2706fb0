"""Settings of a dataset of the user's own: where it lies and under which terms (read by `fetch`)."""

from typing import Annotated

from pydantic import Field, field_validator

from scripts.config.base import Section


class CustomDatasetConfig(Section):
    """Conversations in the LLaVA, ShareGPT or `messages` form, and their images."""

    folder: str
    """Folder that holds the files and images."""
    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files of rows below `folder`: .json (a list), .jsonl or .parquet."""
    images: str | None = None
    """Folder of images below `folder`, ending in "/", or a .zip of them; rows name images by their path in it. Empty:
    there are none, and every row is text alone."""
    licence: str = "the user's own"
    """In words; it reaches every record."""
    terms: tuple[str, ...] = ("own",)
    """The same as words that `licences` can allow or refuse."""

    @field_validator("images")
    @classmethod
    def _a_folder_or_a_zip(cls, images: str | None) -> str | None:
        if images is not None and not images.endswith(("/", ".zip")):
            raise ValueError('should be a folder, written with a "/" at its end, or a .zip file')
        return images
