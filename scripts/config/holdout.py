"""Settings of the hold-out: which images training never sees."""

from typing import Annotated, Literal

from pydantic import Field

from scripts.config.base import Section


class HoldoutConfig(Section):
    """Images kept for evaluation, chosen by a hash of their content: the same ones in every dataset, blend and run."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the images that are kept. 0.02 of COCO is 2,400 images; a small set needs a larger share to give firm
    scores. 0 keeps none.
    """

    seed: int = 0
    """Another seed keeps other images. Never change it between runs that are to be compared."""

    mixed: Literal["evaluate", "drop"] = "evaluate"
    """A conversation with only some images held out never trains. `evaluate` scores it, `drop` uses it nowhere."""
