"""The report's sections on runs: scores with chance levels, the table that compares runs, losses, training curves.

Reads `evaluate/<run>/metrics.json`, `train/<run>/finished.json`, and of that run's state `metrics.jsonl` and
`throughput.json`. A column is one checkpoint of one run; checkpoints of a run share its colour.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.common.formatting import format_bytes, format_count
from scripts.evaluation.question_kinds import GROUPS
from scripts.reporting.charts import Curve, Point, accuracy_bar, step_chart
from scripts.training.metrics import read_metrics, throughput_line

RUN_COLOURS = 6
"""Number of colours of the style sheet for runs; further runs start again with the first."""

STEP_METRICS = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
    "model_flops_utilisation": "Model flops utilisation",
}
"""Metrics of a step besides the loss: key in `metrics.jsonl`, and title of its chart."""

GROUP_LABELS = {"one": "One image", "several": "Several images"}


@dataclass(frozen=True)
class Column:
    """One evaluated checkpoint. `folder` is `evaluate/<run>`, `metrics` its entry of `metrics.json`."""

    run: str
    checkpoint: str
    colour: int
    folder: Path
    metrics: dict[str, Any]
    groups: list[dict[str, Any]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The run's name, and the checkpoint unless it is the final one."""
        return self.run if self.checkpoint == "final" else f"{self.run} ({self.checkpoint})"

    @property
    def loss(self) -> dict[str, Any] | None:
        """Held-out loss over all datasets, `None` without held-out conversations."""
        return self.metrics["heldout"]["loss"]["overall"]


def run_colours(metrics: Iterable[str | Path], finished: Iterable[str | Path]) -> dict[str, int]:
    """The index of the colour of every run, evaluated runs first.

    Raises:
        UserError: two files of the same kind belong to runs of the same name.
    """
    names: dict[str, None] = {}
    for paths in (metrics, finished):
        runs = [read_json(path)["run"] for path in paths]
        if duplicates := {name for name in runs if runs.count(name) > 1}:
            raise UserError(f"two of the given files belong to a run named {min(duplicates)!r}")
        names |= dict.fromkeys(runs)
    return {name: index % RUN_COLOURS for index, name in enumerate(names)}


def columns(paths: Iterable[str | Path], colours: Mapping[str, int]) -> list[Column]:
    """The checkpoints of all `metrics.json` files, in the order given."""
    result: list[Column] = []
    for path in map(Path, paths):
        metrics = read_json(path)
        for checkpoint, entry in sorted(metrics["checkpoints"].items(), reverse=True):
            column = Column(metrics["run"], checkpoint, colours[metrics["run"]], path.parent, entry)
            for group in GROUPS:
                row = entry["heldout"]["groups"][group]
                if row["n"]:
                    column.groups.append({"label": GROUP_LABELS[group], "row": row, "bar": accuracy_bar(row)})
            result.append(column)
    return result


def comparison(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Rows of the comparison: each group and its kinds, then the kinds without a group; one cell per column."""
    kinds_and_groups = dict.fromkeys(
        (kind["images"], kind["name"]) for column in columns for kind in column.metrics["heldout"]["kinds"]
    )
    rows = []
    for group in (*GROUPS, None):
        kinds = [name for images, name in kinds_and_groups if images == group]
        if group and kinds:
            cells = [column.metrics["heldout"]["groups"][group] for column in columns]
            rows.append(_comparison_row(f"All about {GROUP_LABELS[group].lower()}", cells, columns, is_group=True))
        for name in kinds:
            cells = [_kind(column, group, name) for column in columns]
            rows.append(_comparison_row(name, cells, columns, is_group=False))
    return [row for row in rows if any(row["cells"])]


def _kind(column: Column, group: str | None, name: str) -> dict[str, Any] | None:
    kinds = column.metrics["heldout"]["kinds"]
    return next((kind for kind in kinds if (kind["images"], kind["name"]) == (group, name)), None)


def _comparison_row(
    label: str, rows: Sequence[dict | None], columns: Sequence[Column], is_group: bool
) -> dict[str, Any]:
    answered = [row for row in rows if row and row["n"]]
    return {
        "label": label,
        "is_group": is_group,
        "n": " / ".join(dict.fromkeys(str(row["n"]) for row in answered)),
        "chance": answered[0]["chance"] if answered else None,
        "cells": [
            {"row": row, "bar": accuracy_bar(row), "colour": column.colour} if row and row["n"] else None
            for row, column in zip(rows, columns, strict=True)
        ],
    }


def losses(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Held-out loss of every dataset and of all datasets, one value per column."""
    tables = [column.metrics["heldout"]["loss"] for column in columns]
    names = dict.fromkeys(name for table in tables for name in table["datasets"])
    rows = [(name, [table["datasets"].get(name) for table in tables]) for name in names]
    rows.append(("all", [table["overall"] for table in tables]))
    return [
        {
            "name": name,
            "tokens": next(entry["tokens"] for entry in entries if entry),
            "per_run": [entry["loss"] if entry else None for entry in entries],
        }
        for name, entries in rows
        if any(entries)
    ]


def curves(
    paths: Iterable[str | Path], colours: Mapping[str, int], confidence: float
) -> tuple[Markup, list[dict[str, Any]]]:
    """The losses of all runs in one chart, and the details of each: charts of `STEP_METRICS`, speed, losses by dataset.

    In the chart a run that starts from another one begins at the step where that one ended. Read from `metrics.jsonl`
    and `throughput.json` in the state that each `finished.json` names.
    """
    runs, states, speeds, stages, warnings = [], {}, {}, {}, {}
    for path in map(Path, paths):
        finished = read_json(path)
        state = states[finished["run"]] = path.parent / finished["state"]
        stages[finished["run"]] = finished.get("start", {}).get("stages", [])
        runs.append((finished["run"], read_metrics(state / "metrics.jsonl")))
        warnings[finished["run"]] = finished.get("warnings", [])
        if (state / "throughput.json").exists():
            speeds[finished["run"]] = throughput_line(read_json(state / "throughput.json"))
    runs.sort(key=lambda run: list(colours).index(run[0]))

    def points(lines: Sequence[Mapping[str, Any]], key: str, before: int = 0) -> list[Point]:
        return [(before + line["step"], line[key]) for line in lines if key in line]

    losses = []
    for name, lines in runs:
        before = sum(stage["step"] for stage in stages[name])
        values = points(lines, "loss", before), points(lines, "heldout_loss", before)
        losses.append(Curve(name, colours[name], *values))
    details = [
        {
            "name": name,
            "colour": colours[name],
            "charts": [
                {"label": label, "chart": chart}
                for key, label in STEP_METRICS.items()
                if (chart := step_chart(label, [Curve(name, colours[name], points(lines, key))], confidence))
            ],
            "speed": speeds.get(name),
            "warnings": warnings[name],
            "datasets": _by_dataset(lines),
            "features": _feature_store(states[name] / "throughput.json"),
            "stages": _stages(stages[name], name, colours),
        }
        for name, lines in runs
    ]
    return step_chart("Loss", losses, confidence, logarithmic=True), details


def _stages(
    stages: Sequence[Mapping[str, Any]], run: str, colours: Mapping[str, int]
) -> list[dict[str, str | int | None]]:
    """The stages before a run and the run itself, with the weights that the next one starts from; none without `start`.

    The colour of a run that is not in the report is None.
    """
    if not stages:
        return []
    before = [
        {
            "name": stage["run"],
            "colour": colours.get(stage["run"]),
            "weights": f"{stage['which']}, step {stage['step']:,}",
        }
        for stage in stages
    ]
    return [*before, {"name": run, "colour": colours[run], "weights": None}]


def _feature_store(path: Path) -> str | None:
    """What the feature store of a run costs and saves, from its `throughput.json`; None for a run without one."""
    facts = read_json(path).get("features") if path.exists() else None
    if facts is None:
        return None
    return (
        f"Feature store: {format_count(facts['images'])} images, {format_bytes(facts['bytes'])} on the disk. It saves "
        f"{facts['encoder_flops_per_epoch']:.3g} operations of the vision encoder in an epoch; computed in every step, "
        f"they would be {facts['encoder_share']:.1%} of its operations."
    )


def _by_dataset(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Held-out loss of every dataset: at the first evaluation, the lowest one, and at the last evaluation."""
    losses: dict[str, list[float]] = {}
    for line in lines:
        if "heldout_loss" in line:
            for name, entry in line.get("datasets", {}).items():
                losses.setdefault(name, []).append(entry["loss"])
    return [
        {"name": name, "first": values[0], "lowest": min(values), "last": values[-1]}
        for name, values in sorted(losses.items())
    ]


def bar_key(confidence: float, columns: Sequence[Column]) -> Markup:
    """The legend of accuracy bars; blanked images are explained only if `columns` have such scores."""
    marks = [
        ("fill", "width:100%", "accuracy"),
        ("interval", "left:0;width:100%", f"{confidence:.0%} interval"),
        ("chance", "left:50%", "chance: always the most frequent answer"),
    ]
    if any("blanked" in group["row"] for column in columns for group in column.groups):
        marks.append(("blanked", "left:50%", "the same model, images blanked"))
    entry = Markup('<span><span class="bar run-0"><i class="{}" style="{}"></i></span>{}</span>')
    return Markup('<div class="key">{}</div>').format(Markup("").join(entry.format(*mark) for mark in marks))
