"""How much of the raw data may be unusable before the build stops (read by `convert` and `media_index`)."""

from typing import Annotated

from pydantic import Field

from scripts.config.base import Section

Share = Annotated[float, Field(ge=0, le=1)]
OWN, PUBLISHED = 0.05, 0.5
"""Shares of rows where the configuration gives none. What published data lose is known; what own data lose is not."""


class ToleranceConfig(Section):
    """Bad rows and images are always left out, counted and reported; above these shares they stop the build."""

    rows: Share | None = None
    """Share of a dataset's raw rows that may be dropped; 1: never stop. Empty: 0.05 of a custom dataset, 0.5 of a
    published one."""
    images: Share = 0.5
    """Share of a source's images that may be unreadable."""

    def rows_of(self, custom: bool) -> float:
        """The share of rows of a dataset that may be dropped; `custom`: it is one of the user's own."""
        if self.rows is not None:
            return self.rows
        return OWN if custom else PUBLISHED
