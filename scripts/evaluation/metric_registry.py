"""What a metric is: a function from turns to vectors, and a function from the sum of vectors to a number.

Everything else follows from these two. The number of one turn is that of its own vector, the number of a suite that of
the sum over all turns; a bootstrap sums other draws, and a paired test swaps the vectors of two systems. So a mean and
a corpus score such as BLEU (whose vector holds matching n-grams) have their intervals and tests from the same code.

    @metric("exact_match", is_proportion=True)
    def exact_match(turns): return [(float(right(turn)), 1.0) for turn in turns]

A turn that a metric has nothing to say about gets `None` for a vector and counts in nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import numpy as np

from scripts.common.errors import UserError
from scripts.evaluation.turns import Turn

Vectors = list[tuple[float, ...] | None]


def ratio(total: np.ndarray) -> float:
    """The value of most metrics: their vectors are (points, of how many)."""
    return float(total[0] / total[1]) if total[1] else float("nan")


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    `measure` takes the turns and its options by keyword, and returns their vectors, or several lists of them by a
    suffix of the name. `is_proportion` says that every vector is (0 or 1, 1), so that the value is a proportion. `needs` names
    what must have been asked of the model: "losses" of the choices, or the "answer_loss".
    """

    name: str
    measure: Callable[..., Vectors | Mapping[str, Vectors]]
    value: Callable[[np.ndarray], float] = ratio
    higher_is_better: bool = True
    is_proportion: bool = False
    needs: str | None = None

    def check_options(self, options: Mapping[str, Any], where: str) -> None:
        """Refuse options that the metric does not know.

        Raises:
            UserError: naming the metric and what it does know.
        """
        kinds = signature(self.measure).parameters.values()
        known = [each.name for each in kinds if each.kind is Parameter.KEYWORD_ONLY]
        unknown = sorted(set(options) - set(known))
        if unknown:
            knows = f"it knows {', '.join(known)}" if known else "it has none"
            raise UserError(f"{where}: the metric {self.name} has no option {unknown[0]!r}; {knows}")

    def vectors(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> dict[str, Vectors]:
        """The vectors of all turns, by the full name of what they measure."""
        found = self.measure(turns, **options)
        return {self.name: found} if isinstance(found, list) else {self.name + end: each for end, each in found.items()}


METRICS: dict[str, Metric] = {}


def metric(name: str, **attributes: Any) -> Callable[[Callable], Callable]:
    """Register the function below as a metric; `attributes` are those of `Metric`."""

    def register(measure: Callable) -> Callable:
        assert name not in METRICS, name
        METRICS[name] = Metric(name, measure, **attributes)
        return measure

    return register


def best_of(score: Callable[[str, str], float]) -> Callable[[Sequence[Turn]], Vectors]:
    """A mean metric from a score of (output, reference): the best reference counts, as is the custom."""

    def measure(turns: Sequence[Turn]) -> Vectors:
        return [
            (max(score(turn.output, reference) for reference in turn.references), 1.0) if turn.references else None
            for turn in turns
        ]

    return measure
