"""Defines and registers metrics. A metric is a function from turns to vectors and one from a summed vector to a number.

Everything else follows from these two. The score of a turn is the value of its own vector, the score of a suite the
value of the sum over all turns; a bootstrap sums resampled turns, and a paired test swaps the vectors of two systems.
Means and corpus scores such as BLEU (whose vector holds n-gram counts) therefore share the code of intervals and tests.

    @metric("exact_match", is_proportion=True)
    def exact_match(turns): return [(float(is_correct(turn)), 1.0) for turn in turns]

A turn that a metric does not apply to gets `None` instead of a vector and is left out of every number.

`scoring.py` imports the modules that define metrics, which registers them.
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
    """The value of most metrics, whose vectors are (points, maximum points): their mean. NaN without any."""
    return float(total[0] / total[1]) if total[1] else float("nan")


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: its name in `metric_list` and in the results.
        measure: takes the turns, and its options by keyword; returns one vector per turn, or several such lists by
            suffix of the name (`recall` returns "@0", "@1", ...).
        value: the number of a summed vector (width,).
        higher_is_better: whether larger values are better.
        is_proportion: whether every vector is (0 or 1, 1), so that the value is a proportion.
        needs: what the model must be asked besides outputs: "losses" of the choices, or the "answer_loss" of the first
            reference.
    """

    name: str
    measure: Callable[..., Vectors | Mapping[str, Vectors]]
    value: Callable[[np.ndarray], float] = ratio
    higher_is_better: bool = True
    is_proportion: bool = False
    needs: str | None = None

    def check_options(self, options: Mapping[str, Any], where: str) -> None:
        """Check the names of options; `where` begins the error message.

        Raises:
            UserError: an unknown option; the message lists the known ones.
        """
        parameters = signature(self.measure).parameters.values()
        known = [each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY]
        unknown = sorted(set(options) - set(known))
        if unknown:
            listed = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UserError(f"{where}: the metric {self.name} has no option {unknown[0]!r}; {listed}")

    def vectors(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> dict[str, Vectors]:
        """The vectors of all turns by full name, such as `exact_match` or `recall@1`."""
        result = self.measure(turns, **options)
        if isinstance(result, list):
            return {self.name: result}
        return {self.name + suffix: vectors for suffix, vectors in result.items()}


METRICS: dict[str, Metric] = {}


def metric(name: str, **attributes: Any) -> Callable[[Callable], Callable]:
    """Decorator that registers a function as the `measure` of a metric; `attributes` are further ones of `Metric`."""

    def register(measure: Callable) -> Callable:
        assert name not in METRICS, name
        METRICS[name] = Metric(name, measure, **attributes)
        return measure

    return register


def best_of(score: Callable[[str, str], float]) -> Callable[[Sequence[Turn]], Vectors]:
    """Build the `measure` of a mean metric from a score of (output, reference): the best reference counts."""

    def measure(turns: Sequence[Turn]) -> Vectors:
        return [
            (max(score(turn.output, reference) for reference in turn.references), 1.0) if turn.references else None
            for turn in turns
        ]

    return measure
