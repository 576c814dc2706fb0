"""Settings of the stage that asks a trained model questions and counts the right answers."""

from typing import Annotated, Literal

from pydantic import Field

from scripts.config.base import Section

Checkpoint = Literal["final", "best"]


class EvaluationConfig(Section):
    """What is asked of a trained model, and how the answers are judged."""

    checkpoints: Annotated[list[Checkpoint], Field(min_length=1)] = ["final"]
    """Which exported checkpoints the workflow evaluates: `final`, the last step, and `best`, the lowest held-out loss.
    Each one costs the whole evaluation once more."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    """Longest answer in tokens, the end token included. The miniature's answers are a few tokens long; the dialogue
    suites of the original were run with 256."""

    batch: Annotated[int, Field(ge=1)] = 64
    """Prompts generated together. Larger is faster until memory ends; the answers to close calls may depend on it in
    the last bits, so it belongs to the result."""

    threads: Annotated[int, Field(ge=1)] = 1
    """Threads of the processor. Fixed here and not taken from the machine, so that sums are formed in the same order
    wherever the evaluation runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes the first GPU if there is one."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Where sampling begins, for suites that ask for it. Everything else draws nothing."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Held-out conversations to use, the first ones of their plan (which is shuffled). Empty: all of them. A few
    hundred questions give an interval of about three points on either side."""

    blank_images: bool = True
    """Ask everything a second time with every image replaced by one uniform colour. What the model still gets right, it
    did not see. Doubles the time."""

    allow_code: bool = False
    """Whether task files may run the Python functions that they name with `!function`. Read them first: they may do
    whatever you may."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence of all intervals."""
