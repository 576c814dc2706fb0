"""The report's part that sets runs side by side: the settings in which they differ, and differences on the very same
questions.

Two accuracies of a few points' distance may differ by chance; answers of two models to one question go together, so
the difference is taken question by question, which needs far fewer of them. Every column is compared with the first.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.common.files import canonical_json, read_json
from scripts.evaluation.question_kinds import GROUPS
from scripts.evaluation.results import HELDOUT
from scripts.evaluation.statistics import paired_difference
from scripts.reporting.answers import Turns, read_turns
from scripts.reporting.charts import difference_bar
from scripts.reporting.scores import GROUP_LABELS, Column

_SAME_QUESTION = ("question", "references", "kind", "dataset")


def differences(columns: Sequence[Column], confidence: float) -> list[dict[str, Any]]:
    """Rows of the table: each group of kinds, then its kinds; a cell per column but the first, None where nothing is
    shared. Empty with fewer than two columns, or where no two were asked the same."""
    if len(columns) < 2:
        return []
    first = read_turns(columns[0], HELDOUT)
    others = [_shared(first, read_turns(column, HELDOUT)) for column in columns[1:]]
    rows = []
    for group in (*GROUPS, None):
        kinds = list(
            dict.fromkeys(
                kind["name"] for c in columns for kind in c.metrics["heldout"]["kinds"] if kind["images"] == group
            )
        )
        if group and kinds:
            rows.append(_row(f"All about {GROUP_LABELS[group].lower()}", kinds, others, columns, confidence, True))
        rows += [_row(name, [name], others, columns, confidence, False) for name in kinds]
    # One scale for the whole table, so that bars can be compared.
    reach = max((max(-cell["low"], cell["high"]) for row in rows for cell in row["cells"] if cell), default=0) or 1
    for row in rows:
        for cell in filter(None, row["cells"]):
            cell["bar"] = difference_bar(*(cell[name] / reach for name in ("value", "low", "high")))
    return [row for row in rows if any(row["cells"])]


def _shared(first: Turns, other: Turns) -> list[tuple[str, bool, bool]]:
    """(kind, whether the other is right, whether the first is) for every question that both were asked.

    Blends with other held-out parts number other questions alike, so a name alone does not make them the same.
    """
    return [
        (turn["kind"], turn["correct"], first[key]["correct"])
        for key, turn in other.items()
        if key in first and None not in (turn["correct"], first[key]["correct"]) and _is_same(turn, first[key])
    ]


def _is_same(turn: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if any(turn.get(name) != other.get(name) for name in _SAME_QUESTION):
        return False
    return [image["sha256"] for image in turn["images"]] == [image["sha256"] for image in other["images"]]


def _row(
    label: str,
    kinds: Sequence[str],
    others: Sequence[list[tuple[str, bool, bool]]],
    columns: Sequence[Column],
    confidence: float,
    is_group: bool,
) -> dict[str, Any]:
    cells = []
    for column, answers in zip(columns[1:], others, strict=True):
        pairs = [(right, right_first) for kind, right, right_first in answers if kind in kinds]
        cells.append(_cell(pairs, column.colour, confidence) if pairs else None)
    return {"label": label, "is_group": is_group, "cells": cells}


def _cell(pairs: Sequence[tuple[bool, bool]], colour: int, confidence: float) -> dict[str, Any]:
    value, (low, high) = paired_difference(pairs, confidence)
    return {
        "colour": colour,
        "n": len(pairs),
        "value": value,
        "low": low,
        "high": high,
        "only": sum(right and not first for right, first in pairs),
        "only_first": sum(first and not right for right, first in pairs),
        "sure": low > 0 or high < 0,
    }


def settings(finished: Iterable[Path], colours: Mapping[str, int]) -> dict[str, Any] | None:
    """The settings in which runs differ, one column per run, and what each came to; None with fewer than two."""
    runs = sorted((_run(path) for path in map(Path, finished)), key=lambda run: list(colours).index(run["name"]))
    if len(runs) < 2:
        return None
    names = sorted({name for run in runs for name in run["settings"]})
    rows = [(name, [canonical_json(run["settings"].get(name)).strip('"') for run in runs]) for name in names]
    rows = [(name, values) for name, values in rows if len(set(values)) > 1]
    rows.append(("steps", [f"{run['steps']:,}" for run in runs]))
    rows.append(("least held-out loss", [f"{run['loss']:.4f}" for run in runs]))
    return {"runs": [{"name": run["name"], "colour": colours[run["name"]]} for run in runs], "rows": rows}


def _run(path: Path) -> dict[str, Any]:
    finished = read_json(path)
    return {
        "name": finished["run"],
        "settings": read_json(path.parent / finished["state"] / "settings.json"),
        "steps": finished["steps"],
        "loss": finished["best"]["heldout_loss"],
    }
