"""Formats the results of an evaluation as a few lines of text."""

from collections.abc import Mapping
from typing import Any

from scripts.evaluation.question_kinds import GROUPS
from scripts.evaluation.results import TEXT_METRICS

_LABELS = {"one": "one image", "several": "several images"}


def result_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The scores of a `metrics.json`: one line per checkpoint, group of questions, suite and metric of a suite."""
    confidence = f"{metrics['settings']['confidence']:.0%}"
    lines = []
    for name, entry in sorted(metrics["checkpoints"].items(), reverse=True):
        loss = entry["heldout"]["loss"]["overall"]
        measured = f": held-out loss {loss['loss']:.4f} per token" if loss else ""
        lines.append(f"{metrics['run']}, {name} checkpoint{measured}")
        for group in GROUPS:
            row = entry["heldout"]["groups"][group]
            if row["n"]:
                lines.append(f"  {_LABELS[group]:<15}{_accuracy(row, confidence)}")
        lines += [line for item in entry["heldout"].get("datasets", {}).items() for line in _free_text(*item)]
        for suite, row in entry["suites"].items():
            if row["n"]:
                lines.append(f"  suite {suite}: {row['correct']} of {row['n']} answers correct")
            lines += [f"    {name:<17} {_metric(metric)}" for name, metric in row.get("metrics", {}).items()]
    return lines


def _free_text(dataset: str, row: Mapping[str, Any]) -> list[str]:
    """The scores of the answers of one dataset, and what lowers them."""
    lines = [f"  {dataset}: {row['n']} held-out answers"]
    lines += [f"    {name:<17} {_metric(row['metrics'][name])}" for name in TEXT_METRICS if name in row["metrics"]]
    if long := row.get("long_references"):
        lines.append(f"    {long} references are longer than evaluate.max_new_tokens, where answers are cut off")
    return lines


def _metric(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "nothing to score"
    interval = f" ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})" if row["interval"] else ""
    return f"{row['value']:.3f}{interval}, n = {row['n']}"


def _accuracy(row: Mapping[str, Any], confidence: str) -> str:
    low, high = row["interval"]
    interval = f"{confidence} interval {100 * low:.1f} to {100 * high:.1f}"
    parts = [f"{row['accuracy']:6.1%} correct ({interval}, n = {row['n']})", f"chance {row['chance']:.1%}"]
    if "blanked" in row:
        parts.append(f"images blanked {row['blanked']['accuracy']:.1%}")
    return "; ".join(parts)
