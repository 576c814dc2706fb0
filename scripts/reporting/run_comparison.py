"""The report's comparison of runs: differences of accuracy on the same questions, and the settings that differ.

Two accuracies that are a few points apart may differ by chance. The answers of two models to the same question are
correlated, so the difference is computed question by question, which needs far fewer questions for the same precision.
Every column is compared with the first one.
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
    """Rows of the table of differences: each group of kinds, then its kinds.

    A row has one cell per column except the first, `None` where the two share no questions. Rows without cells are left
    out; there are none with fewer than two columns.
    """
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
    largest = max((max(-cell["low"], cell["high"]) for row in rows for cell in row["cells"] if cell), default=0) or 1
    for row in rows:
        for cell in filter(None, row["cells"]):
            cell["bar"] = difference_bar(cell["value"] / largest, cell["low"] / largest, cell["high"] / largest)
    return [row for row in rows if any(row["cells"])]


def _shared(first: Turns, other: Turns) -> list[tuple[str, bool, bool]]:
    """(kind, the other is correct, the first is correct) for every question that both answered.

    Other held-out parts may use the same test and round for another question, so its content is compared too.
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
        pairs = [(correct, first_correct) for kind, correct, first_correct in answers if kind in kinds]
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
        "only": sum(correct and not first for correct, first in pairs),
        "only_first": sum(first and not correct for correct, first in pairs),
        "significant": low > 0 or high < 0,
    }


def settings(finished: Iterable[Path], colours: Mapping[str, int]) -> dict[str, Any] | None:
    """The settings that differ between runs, and their steps and losses; `None` with fewer than two runs."""
    runs = sorted((_run(path) for path in map(Path, finished)), key=lambda run: list(colours).index(run["name"]))
    if len(runs) < 2:
        return None
    names = sorted({name for run in runs for name in run["settings"]})
    rows = [(_label(name), [_text(name, run["settings"].get(name)) for run in runs]) for name in names]
    rows = [(name, values) for name, values in rows if len(set(values)) > 1]
    rows.append(("steps", [f"{run['steps']:,}" for run in runs]))
    rows.append(("lowest held-out loss", [f"{run['loss']:.4f}" for run in runs]))
    return {"runs": [{"name": run["name"], "colour": colours[run["name"]]} for run in runs], "rows": rows}


def _label(setting: str) -> str:
    return "starts from" if setting == "start" else setting


def _text(setting: str, value: Any) -> str:
    if setting == "start" and value is None:
        return "the model"
    return canonical_json(value).strip('"')


def _run(path: Path) -> dict[str, Any]:
    finished = read_json(path)
    return {
        "name": finished["run"],
        "settings": read_json(path.parent / finished["state"] / "settings.json"),
        "steps": finished["steps"],
        "loss": finished["best"]["heldout_loss"],
    }
