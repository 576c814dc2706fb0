"""Judging the turns of a suite: every metric asked for, with its interval, and each turn's own scores.

The metrics live in modules by what they look at; importing this module registers them all. docs/evaluation.md says how
to add one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scripts.common.errors import UserError
from scripts.evaluation import choice_metrics, cider, multi_image_metrics, text_metrics, vqa  # noqa: F401 (each registers its metrics)
from scripts.evaluation.metric_registry import METRICS, Metric, Vectors
from scripts.evaluation.resampling import bootstrap, paired
from scripts.evaluation.statistics import wilson
from scripts.evaluation.turns import Turn, units


@dataclass(frozen=True)
class MetricSpec:
    """A metric that a suite asks for, with its options."""

    metric: Metric
    options: Mapping[str, Any] = field(default_factory=dict)


def metric_spec(name: str, options: Mapping[str, Any] | None = None, where: str = "metrics") -> MetricSpec:
    """A metric by its name, which is checked, as are the options.

    Raises:
        UserError: an unknown name or option; the message begins with `where` and names the known ones.
    """
    if name not in METRICS:
        raise UserError(f"{where}: there is no metric {name!r}; there are {', '.join(sorted(METRICS))}")
    METRICS[name].check_options(options or {}, where)
    return MetricSpec(METRICS[name], dict(options or {}))


def score_turns(
    turns: Sequence[Turn], wanted: Sequence[MetricSpec], confidence: float
) -> tuple[list[Turn], dict[str, Any]]:
    """Score turns.

    Returns the turns, with `scores` and, where the first metric is right or wrong, `correct`; and by metric its value,
    interval, how the interval was found, n (turns that count) and whether higher is better. JSON has no number for what
    is not finite, so that becomes `None`.
    """
    scores: list[dict[str, float]] = [{} for _ in turns]
    rows: dict[str, Any] = {}
    for each in wanted:
        for name, vectors in each.metric.vectors(turns, each.options).items():
            rows[name] = _row(each.metric, vectors, units(turns), confidence)
            for own, vector in zip(scores, vectors, strict=True):
                value = math.nan if vector is None else each.metric.value(np.array(vector))
                if math.isfinite(value):
                    own[name] = value
    first = wanted[0] if wanted else None
    decisive = first.metric.name if first and first.metric.is_proportion and first.metric.higher_is_better else None

    def verdict(own: Mapping[str, float]) -> bool | None:
        return bool(own[decisive]) if decisive in own else None

    judged = [replace(turn, scores=own, correct=verdict(own)) for turn, own in zip(turns, scores, strict=True)]
    return judged, rows


def compare(
    first: Sequence[Turn], second: Sequence[Turn], wanted: Sequence[MetricSpec], confidence: float
) -> dict[str, dict[str, Any]]:
    """Compare two systems' turns on the same questions, metric by metric, see `resampling.paired`.

    Turns that only one of them has are left out, and those that go by one name but ask something else; `n` says how
    many units remain.
    """

    def key(turn: Turn) -> tuple:
        return turn.test, turn.round, turn.question, *turn.references

    theirs_by_key = {key(turn): turn for turn in second}
    shared = [turn for turn in first if key(turn) in theirs_by_key]
    others = [theirs_by_key[key(turn)] for turn in shared]
    result: dict[str, dict[str, Any]] = {}
    for each in wanted:
        ours, theirs = each.metric.vectors(shared, each.options), each.metric.vectors(others, each.options)
        for name in [name for name in ours if name in theirs]:
            where = units(shared)
            one, other = _summed(ours[name], where), _summed(theirs[name], where)
            both = sorted(set(one) & set(other))
            if not both:
                continue
            pair = (np.stack([vectors[unit] for unit in both]) for vectors in (one, other))
            result[name] = paired(*pair, each.metric.value, confidence) | {"n": len(both)}
    return result


def _row(metric: Metric, vectors: Vectors, where: Sequence[int], confidence: float) -> dict[str, Any]:
    counted = [vector for vector in vectors if vector is not None]
    row = {"n": len(counted), "higher_is_better": metric.higher_is_better, "value": None, "interval": None}
    if not counted:
        return row
    by_unit = np.stack(list(_summed(vectors, where).values()))
    value = metric.value(by_unit.sum(0))
    all_alike = metric.is_proportion and value in (0.0, 1.0)
    if metric.is_proportion and (all_alike or len(by_unit) == len(counted)):
        # A bootstrap of nothing but right answers has no width; each unit then counts as one answer.
        right = round(value * len(by_unit)) if all_alike else int(by_unit[:, 0].sum())
        interval, method = wilson(right, len(by_unit), confidence), "wilson"
    else:
        interval, method = bootstrap(by_unit, metric.value, confidence), "bootstrap"
    return row | {
        "value": value if math.isfinite(value) else None,
        "interval": list(interval) if interval else None,
        "method": method,
        "units": len(by_unit),
    }


def _summed(vectors: Vectors, where: Sequence[int]) -> dict[int, np.ndarray]:
    """The sum of the vectors of every unit that has any."""
    result: dict[int, np.ndarray] = {}
    for unit, vector in zip(where, vectors, strict=True):
        if vector is not None:
            result[unit] = result.get(unit, 0) + np.array(vector, dtype=float)
    return result
