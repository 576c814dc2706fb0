"""Settings of a taste: real data, but only what is said about a few images (read by `wanted`)."""

from typing import Annotated

from pydantic import Field

from scripts.config.base import Section


class SubsetConfig(Section):
    """Which images are taken of sources that hold nothing but images, such as COCO; with them, all that is said about
    them.

    With `download` only these are fetched, out of the published archive, for megabytes instead of 20 GB.
    """

    images: Annotated[int, Field(ge=1)] = 300
    """Images in all; every dataset brings its share of them."""
    seed: int = 0
    """Another seed takes other images."""
