"""Scores the turns of a suite: the value and the interval of every metric, and the scores of each turn.

Importing this module registers all metrics. docs/evaluation.md describes how to add one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scripts.common.errors import UserError

# By name and not by discovery: what is imported is part of the fingerprint of the code, see `code_fingerprint`.
from scripts.evaluation import choice_metrics, cider, multi_image_metrics, text_metrics, vqa  # noqa: F401 (registers metrics)
from scripts.evaluation.metric_registry import METRICS, Metric, Vectors
from scripts.evaluation.resampling import bootstrap, paired
from scripts.evaluation.statistics import wilson
from scripts.evaluation.turns import Turn, unit_numbers


@dataclass(frozen=True)
class MetricSpec:
    """A metric that a suite asks for, with its options."""

    metric: Metric
    options: Mapping[str, Any] = field(default_factory=dict)


def metric_spec(name: str, options: Mapping[str, Any] | None = None, where: str = "metrics") -> MetricSpec:
    """Look up a metric by name and check its options.

    Raises:
        UserError: an unknown name or option; the message begins with `where` and lists the known ones.
    """
    if name not in METRICS:
        raise UserError(f"{where}: there is no metric {name!r}; known metrics: {', '.join(sorted(METRICS))}")
    METRICS[name].check_options(options or {}, where)
    return MetricSpec(METRICS[name], dict(options or {}))


def score_turns(
    turns: Sequence[Turn], specs: Sequence[MetricSpec], confidence: float
) -> tuple[list[Turn], dict[str, Any]]:
    """Score turns by the metrics of a suite.

    Returns:
        The turns with `scores` and, if the first metric is a proportion where higher is better, `correct`; and by
        metric {"value", "interval", "method" of the interval, "units", "n" (turns with a vector), "higher_is_better"}.
        Numbers that are not finite become `None`, because JSON cannot hold them.
    """
    scores: list[dict[str, float]] = [{} for _ in turns]
    rows: dict[str, Any] = {}
    for spec in specs:
        for name, vectors in spec.metric.vectors(turns, spec.options).items():
            rows[name] = _row(spec.metric, vectors, unit_numbers(turns), confidence)
            for turn_scores, vector in zip(scores, vectors, strict=True):
                value = math.nan if vector is None else spec.metric.value(np.array(vector))
                if math.isfinite(value):
                    turn_scores[name] = value
    first = specs[0].metric if specs else None
    decisive = first.name if first and first.is_proportion and first.higher_is_better else None
    scored = []
    for turn, turn_scores in zip(turns, scores, strict=True):
        score = None if decisive is None else turn_scores.get(decisive)
        scored.append(replace(turn, scores=turn_scores, correct=None if score is None else bool(score)))
    return scored, rows


def compare(
    first: Sequence[Turn], second: Sequence[Turn], specs: Sequence[MetricSpec], confidence: float
) -> dict[str, dict[str, Any]]:
    """Compare two systems on the questions that both answered.

    Turns are paired if test, round, question and references are the same; all others are left out.

    Returns:
        By metric the result of `resampling.paired`, first minus second, and "n", the number of shared units.
    """

    def key(turn: Turn) -> tuple:
        return turn.test, turn.round, turn.question, *turn.references

    second_by_key = {key(turn): turn for turn in second}
    shared = [turn for turn in first if key(turn) in second_by_key]
    counterparts = [second_by_key[key(turn)] for turn in shared]
    numbers = unit_numbers(shared)
    result: dict[str, dict[str, Any]] = {}
    for spec in specs:
        ours, theirs = spec.metric.vectors(shared, spec.options), spec.metric.vectors(counterparts, spec.options)
        for name in [name for name in ours if name in theirs]:
            our_units, their_units = _unit_sums(ours[name], numbers), _unit_sums(theirs[name], numbers)
            common = sorted(our_units.keys() & their_units.keys())
            if common:
                stacked = [np.stack([sums[unit] for unit in common]) for sums in (our_units, their_units)]
                result[name] = paired(stacked[0], stacked[1], spec.metric.value, confidence) | {"n": len(common)}
    return result


def _row(metric: Metric, vectors: Vectors, numbers: Sequence[int], confidence: float) -> dict[str, Any]:
    counted = [vector for vector in vectors if vector is not None]
    row = {"n": len(counted), "higher_is_better": metric.higher_is_better, "value": None, "interval": None}
    if not counted:
        return row
    by_unit = np.stack(list(_unit_sums(vectors, numbers).values()))
    value = metric.value(by_unit.sum(0))
    all_equal = metric.is_proportion and value in (0.0, 1.0)
    interval: tuple[float, float] | None
    if metric.is_proportion and (all_equal or len(by_unit) == len(counted)):
        # A bootstrap of equal answers has an interval of width zero; each unit then counts as one answer.
        correct = round(value * len(by_unit)) if all_equal else int(by_unit[:, 0].sum())
        interval, method = wilson(correct, len(by_unit), confidence), "wilson"
    else:
        interval, method = bootstrap(by_unit, metric.value, confidence), "bootstrap"
    return row | {
        "value": value if math.isfinite(value) else None,
        "interval": list(interval) if interval else None,
        "method": method,
        "units": len(by_unit),
    }


def _unit_sums(vectors: Vectors, numbers: Sequence[int]) -> dict[int, np.ndarray]:
    """The summed vector (width,) of every unit that has a vector; `numbers` holds the unit of each turn."""
    sums: dict[int, np.ndarray] = {}
    for unit, vector in zip(numbers, vectors, strict=True):
        if vector is not None:
            sums[unit] = sums.get(unit, 0) + np.array(vector, dtype=float)
    return sums
