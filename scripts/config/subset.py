"""Settings of a subset of published data: only conversations about a few images (read by `select_subset`)."""

from typing import Annotated

from pydantic import Field

from scripts.config.base import Section


class SubsetConfig(Section):
    """A selection of images from sources that contain only images, such as COCO, and all conversations about them.

    With `download`, only these images are downloaded from the published archive: megabytes instead of 20 GB.
    """

    images: Annotated[int, Field(ge=1)] = 300
    """Images in all; the datasets take turns in selecting them."""
    seed: int = 0
    """Another seed selects other images."""
