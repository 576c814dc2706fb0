"""Settings of the stage that evaluates a trained model."""

from typing import Annotated, Literal

from pydantic import Field

from scripts.config.base import Section

Checkpoint = Literal["final", "best"]


class EvaluationConfig(Section):
    """How a trained model is evaluated: on held-out questions and on suites."""

    checkpoints: Annotated[list[Checkpoint], Field(min_length=1)] = Field(default=["final"])
    """Which exported checkpoints the workflow evaluates: `final`, the last step, and `best`, the lowest held-out loss.
    Each takes a whole evaluation."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    """Longest answer in tokens, the end token included. The miniature's answers are a few tokens long; the dialogue
    suites of the original were run with 256."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    """Prompts in one batch. Larger is faster, as long as memory allows; rounding depends on it in the last bits, which
    may change an answer where two tokens are almost equally likely."""

    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads. Fixed here and not taken from the machine, so that sums are added in the same order on every
    machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; `auto` takes the first GPU if there is one."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of sampling, for suites that sample. Nothing else is random."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of held-out conversations to use, the first ones of their shuffled plan. Empty: all of them. A few
    hundred questions give an interval of about three points on either side."""

    blank_images: bool = True
    """Repeat the held-out questions with every image replaced by one uniform colour. What the model still answers
    correctly, it did not read from the images. Doubles the time."""

    allow_code: bool = False
    """Whether task files may run the Python functions that they name with `!function`. Read the code first: it runs
    with your permissions."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of all intervals."""
