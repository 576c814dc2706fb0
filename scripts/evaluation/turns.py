"""One answer of a model with all that judging it takes: what the metrics read, and a line of the `.jsonl` files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any


@dataclass(frozen=True)
class Turn:
    """One answer of a model.

    `test` names the conversation and `round` (from 1) its place in it. `images` are those in view, {"path"?, "sha256"}
    each, in the order of their numbers; the last `new_images` came with this round, and `shown` holds the round of
    each. `correct` is `None` where there is nothing to compare with, or where a metric gives shares of a
    point. `blanked` is the answer without seeing, if asked.

    Suites have more: `raw` is the output before the suite's filters, if they changed it; `choices` what could be
    chosen and `target` the place of the right one; `losses` the nats that each choice costs; `answer_loss` the nats
    and the number of tokens of the first reference; `cluster` a name that versions of one question share (the same in
    other words, or with its images in another order); `scores` what every metric gives for this turn alone.
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
        """What a line of the file holds: everything but what there is none of."""
        return {key: value for key, value in asdict(self).items() if key == "correct" or value not in (None, {})}

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Turn":
        """A turn from a line of the file; what lines hold besides (model, settings) is passed over."""
        known = {each.name for each in dataclass_fields(cls)}
        return cls(**{key: value for key, value in line.items() if key in known})

    @property
    def unit(self) -> str:
        """What is drawn as a whole when intervals are estimated: turns of one conversation, and versions of one
        question, depend on each other."""
        return self.test if self.cluster is None else self.cluster


def units(turns: Sequence[Turn]) -> list[int]:
    """The number of each turn's unit, counted in the order in which they first appear."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(turn.unit, len(numbers)) for turn in turns]
