"""How much of the raw data may be unusable before the build stops (read by `convert` and `media_index`)."""

from typing import Annotated

from pydantic import Field

from scripts.config.base import Section

Share = Annotated[float, Field(ge=0, le=1)]


class ToleranceConfig(Section):
    """Bad rows and images are always left out, counted and reported; above these shares they stop the build."""

    rows: Share = 0.5
    """Share of a dataset's raw rows that may be dropped. 1: never stop; 0.01 suits data that should be clean."""
    images: Share = 0.5
    """Share of a source's images that may be unreadable."""
