"""Settings of replay: a decoder's own answers as a text-only dataset, against forgetting (read by `replay`)."""

from typing import Annotated

from pydantic import Field

from scripts.config.base import Section
from scripts.config.custom import CustomDatasetConfig
from scripts.config.paths import Declared

ROWS = "rows.jsonl"
"""The file of a replay dataset that holds its conversations."""


class ReplayConfig(Section):
    """Prompts that the decoder of a model answers before training. Blends use the rows like any other dataset."""

    model: str
    """Entry of `models` whose decoder answers, before it is trained."""
    prompts: Declared | None = None
    """File of prompts: a line each (.txt), or rows with a member `prompt` (.jsonl). Empty: the prompts of this project,
    unless `questions_of` names datasets."""
    questions_of: tuple[str, ...] = ()
    """Datasets whose questions are asked too, as text without their images."""
    samples: Annotated[int, Field(ge=1)] = 500
    """Most prompts that are answered, chosen by a hash of their text."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Most tokens of an answer; one that is cut off is left out."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Answers are drawn at this temperature, with `seed`. 1: as the decoder would, which on average changes
    nothing of what it says; less makes it surer of itself than it was; 0: the most likely answer."""
    seed: int = 0
    """Seed of the choice of prompts and of answers that are drawn."""


def replay_dataset(folder: str) -> CustomDatasetConfig:
    """A replay dataset in `folder`, `replay/<name>` of the results root, as one that is read like a custom dataset."""
    return CustomDatasetConfig(folder=folder, files=(ROWS,), licence="answers of a language model")
