"""Settings of the hold-out: which images are never used for training (read by `holdout` and `plan`)."""

from typing import Annotated, Literal

from pydantic import Field

from scripts.config.base import Section


class HoldoutConfig(Section):
    """Images held out for evaluation, selected by a hash of their content: the same in every dataset, blend and run."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the images that are held out. 0.02 of COCO is 2,400 images; a small set needs a larger share for narrow
    confidence intervals. 0 holds out none."""

    seed: int = 0
    """Another seed holds out other images. Never change it between runs that are to be compared."""

    mixed: Literal["evaluate", "drop"] = "evaluate"
    """A conversation of which only some images are held out is never used for training. `evaluate`: it is used for
    evaluation; `drop`: it is not used at all."""
