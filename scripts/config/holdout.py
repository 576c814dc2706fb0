"""Settings of the hold-out: which images, and which rows of own data, are never used for training.

Read by `holdout`, `convert` and `plan`.
"""

from typing import Annotated, Literal

from pydantic import Field

from scripts.config.base import Section


class HoldoutConfig(Section):
    """Images held out for evaluation, selected by a hash of their content: the same in every dataset, blend and run."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the images that are held out. 0.02 of COCO is 2,400 images; a small set needs a larger share for narrow
    confidence intervals. 0 holds out none. Of your own datasets (`custom`) also the share of the rows without images,
    unless they have a `split`; one of ten conversations or more holds out at least one."""

    seed: int = 0
    """Another seed holds out other images. Never change it between runs that are to be compared."""

    mixed: Literal["evaluate", "drop"] = "evaluate"
    """A conversation of which only some images are held out is never used for training. `evaluate`: it is used for
    evaluation; `drop`: it is not used at all."""


class KeptRowsConfig(Section):
    """Rows of a custom dataset that are kept for evaluation: derived from its `split` and from `holdout`."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the rows, chosen by a hash of their content."""
    seed: int = 0
    """`holdout.seed`."""
    text_only: bool = False
    """Only rows without images are judged; the others are held out with their images."""
