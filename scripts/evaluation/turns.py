"""One answer of a model with everything that metrics read: a line of the `.jsonl` result files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any


@dataclass(frozen=True)
class Turn:
    """One answer of a model.

    Attributes:
        test: name of the conversation.
        round: number of the round in it, from 1.
        question: the text of the round's question.
        prompt: the whole text that the model read, "<image>" for an image.
        images: all images shown so far, {"path"?, "sha256"} each, in the order of their numbers.
        new_images: how many of them, the last ones, were shown with this round.
        output: the answer, after the suite's filters.
        references: answers that count as correct.
        correct: whether the answer is correct; `None` without references, or if the first metric is no proportion.
        kind: kind of the held-out question.
        dataset: dataset of the held-out conversation.
        blanked: {"output", "correct"} of the same question with blanked images, if it was asked.
        shown: for each image the round that brought it.
        raw: the output before the suite's filters, if they changed it.
        choices: the texts to choose from.
        target: index of the correct choice.
        losses: loss of each choice in nats.
        answer_loss: loss of the first reference in nats, and its number of tokens.
        cluster: name shared by the versions of one question (other words, or another order of images).
        scores: the score of every metric for this turn.
    """

    test: str
    round: int
    question: str
    prompt: str
    images: list[dict[str, str]]
    new_images: int
    output: str
    references: list[str]
    correct: bool | None
    kind: str | None = None
    dataset: str | None = None
    blanked: dict[str, Any] | None = None
    shown: list[int] | None = None
    raw: str | None = None
    choices: list[str] | None = None
    target: int | None = None
    losses: list[float] | None = None
    answer_loss: tuple[float, int] | None = None
    cluster: str | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """The JSON object of this turn, without empty fields (`correct` is always present)."""
        return {key: value for key, value in asdict(self).items() if key == "correct" or value not in (None, {})}

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Turn":
        """Make a turn of the JSON object of a line; further keys of the line (model, settings) are ignored."""
        known = {each.name for each in dataclass_fields(cls)}
        return cls(**{key: value for key, value in line.items() if key in known})

    @property
    def unit(self) -> str:
        """Name of the resampling unit: turns of one conversation and versions of one question depend on each other."""
        return self.test if self.cluster is None else self.cluster


def unit_numbers(turns: Sequence[Turn]) -> list[int]:
    """The number of each turn's unit, from 0 in the order of first appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(turn.unit, len(numbers)) for turn in turns]
