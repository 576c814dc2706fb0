"""The report's parts about runs: scores beside chance, the table that compares runs, losses, curves.

Reads `evaluate/<run>/metrics.json`, `train/<run>/finished.json` and the `metrics.jsonl` of that run's state. A column
is one checkpoint of one run; checkpoints of a run share its colour.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.evaluation.question_kinds import GROUPS
from scripts.reporting.charts import Curve, accuracy_bar, step_chart
from scripts.training.metrics import read_metrics

RUN_COLOURS = 6
"""Colours that the style sheet has for runs; further runs begin again with the first."""

TOLD = {"lr": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_second": "Tokens per second"}
"""What a step tells beside its loss: key of `metrics.jsonl`, and what it is called."""

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
        """The run's name, and which checkpoint if it is not the last one."""
        return self.run if self.checkpoint == "final" else f"{self.run} ({self.checkpoint})"

    @property
    def loss(self) -> dict[str, Any] | None:
        """Held-out loss over all datasets, if there was anything to measure it on."""
        return self.metrics["heldout"]["loss"]["overall"]


def run_colours(metrics: Iterable[str | Path], finished: Iterable[str | Path]) -> dict[str, int]:
    """The colour of every run, evaluated ones first.

    Raises:
        UserError: two files of one sort are about runs of the same name.
    """
    names: dict[str, None] = {}
    for paths in (metrics, finished):
        found = [read_json(path)["run"] for path in paths]
        if twice := {name for name in found if found.count(name) > 1}:
            raise UserError(f"two of the given files are about a run named {min(twice)!r}")
        names |= dict.fromkeys(found)
    return {name: place % RUN_COLOURS for place, name in enumerate(names)}


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
    """Rows of the comparison: each group, then its kinds, then kinds of no group; one cell per column."""
    found: dict[tuple[str | None, str], None] = {}
    for column in columns:
        for kind in column.metrics["heldout"]["kinds"]:
            found.setdefault((kind["images"], kind["name"]))
    rows = []
    for group in (*GROUPS, None):
        kinds = [name for images, name in found if images == group]
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
    asked = [row for row in rows if row and row["n"]]
    return {
        "label": label,
        "is_group": is_group,
        "n": " / ".join(dict.fromkeys(str(row["n"]) for row in asked)),
        "chance": asked[0]["chance"] if asked else None,
        "cells": [
            {"row": row, "bar": accuracy_bar(row), "colour": column.colour} if row and row["n"] else None
            for row, column in zip(rows, columns, strict=True)
        ],
    }


def losses(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Held-out loss of every dataset, one value per column, and of all together."""
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
    """The losses of all runs in one chart, and for each run small charts of what else its training tells.

    Read from the `metrics.jsonl` of the state that each `finished.json` names.
    """
    runs = []
    for path in map(Path, paths):
        finished = read_json(path)
        runs.append((finished["run"], read_metrics(path.parent / finished["state"] / "metrics.jsonl")))
    runs.sort(key=lambda run: list(colours).index(run[0]))

    def curve(name: str, lines: Sequence[Mapping[str, Any]], key: str, measured: str = "") -> Curve:
        points = [[(line["step"], line[what]) for line in lines if what in line] for what in (key, measured)]
        return Curve(name, colours[name], *points)

    losses = [curve(name, lines, "loss", "heldout_loss") for name, lines in runs]
    told = [
        {
            "name": name,
            "colour": colours[name],
            "charts": [
                {"label": label, "chart": chart}
                for key, label in TOLD.items()
                if (chart := step_chart(label, [curve(name, lines, key)], confidence))
            ],
            "datasets": _by_dataset(lines),
        }
        for name, lines in runs
    ]
    return step_chart("Loss", losses, confidence, logarithmic=True), told


def _by_dataset(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Held-out loss of every dataset: at the first measurement, at its least, and at the last."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if "heldout_loss" in line:
            for name, entry in line.get("datasets", {}).items():
                found.setdefault(name, []).append(entry["loss"])
    return [
        {"name": name, "first": values[0], "least": min(values), "last": values[-1]}
        for name, values in sorted(found.items())
    ]


def bar_key(confidence: float, columns: Sequence[Column]) -> Markup:
    """What the marks of an accuracy bar mean; that of blanked images only where a run of `columns` was asked so."""
    marks = [
        ("fill", "width:100%", "accuracy"),
        ("interval", "left:0;width:100%", f"{confidence:.0%} interval"),
        ("chance", "left:50%", "chance: always the commonest answer"),
    ]
    if any("blanked" in group["row"] for column in columns for group in column.groups):
        marks.append(("blanked", "left:50%", "the same model, images blanked"))
    entry = Markup('<span><span class="bar run-0"><i class="{}" style="{}"></i></span>{}</span>')
    return Markup('<div class="key">{}</div>').format(Markup("").join(entry.format(*mark) for mark in marks))
