"""Settings of a custom dataset: its files and its terms (read by `fetch`)."""

from typing import Annotated

from pydantic import Field, field_validator

from scripts.config.base import Section
from scripts.config.paths import Below, Given


class CustomDatasetConfig(Section):
    """Your conversations, in the form of LLaVA, ShareGPT or `messages`, and their images."""

    folder: Given
    """Folder with the files and images."""
    files: Annotated[tuple[Below, ...], Field(min_length=1)]
    """Files of conversations below `folder`: .json (a list), .jsonl or .parquet."""
    images: Below | None = None
    """Folder of images below `folder`, ending in "/", or a .zip of them; rows name images by their path in it. Empty:
    there are none, and every row is text-only."""
    licence: str = "the user's own"
    """Free text; it is written into every record."""
    terms: tuple[str, ...] = ("custom",)
    """The terms as keywords, which `licences` can allow or refuse."""

    @field_validator("images")
    @classmethod
    def _a_folder_or_a_zip(cls, images: str | None) -> str | None:
        if images is not None and not images.endswith(("/", ".zip")):
            raise ValueError('should be a folder, with a "/" at its end, or a .zip file')
        return images
