"""The report's section on held-out answers: scores of free text by dataset, and answers beside images and references.

Reads the entry `heldout.datasets` of every `metrics.json` and `heldout/<checkpoint>.jsonl` in its folder. It is about
datasets whose questions have no kinds, such as your own; questions with kinds have the tables of exact match.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.evaluation.results import HELDOUT, TEXT_METRICS
from scripts.reporting.answers import Turns, answer_rows, metric_rows, read_turns
from scripts.reporting.report_images import ReportImages
from scripts.reporting.scores import Column

CONVERSATIONS = 12
"""Conversations of a dataset that are shown: the first ones of the held-out plan, whose order is a shuffle."""


def heldout_datasets(columns: Sequence[Column], report_images: ReportImages) -> list[dict[str, Any]]:
    """Every dataset that is scored as free text: its metrics, one cell per column, and conversations with answers."""
    tables: list[Mapping[str, Any]] = [column.metrics["heldout"].get("datasets", {}) for column in columns]
    names = sorted({name for table in tables for name in table})
    turns = [read_turns(column, HELDOUT) if table else {} for column, table in zip(columns, tables, strict=True)]
    return [_dataset(name, columns, tables, turns, report_images) for name in names]


def _dataset(
    name: str,
    columns: Sequence[Column],
    tables: Sequence[Mapping[str, Any]],
    turns: Sequence[Turns],
    report_images: ReportImages,
) -> dict[str, Any]:
    tests: dict[str, list[tuple[str, int]]] = {}
    for key in dict.fromkeys(key for table in turns for key, turn in table.items() if turn.get("dataset") == name):
        tests.setdefault(key[0], []).append(key)
    rows = [table.get(name, {}) for table in tables]
    return {
        "name": name,
        "n": max(row.get("n", 0) for row in rows),
        "long_references": max(row.get("long_references", 0) for row in rows),
        "columns": [{"run": column.label, "colour": column.colour} for column in columns],
        "metrics": metric_rows([_in_order(row.get("metrics", {})) for row in rows]),
        "conversations": [
            {"name": test, "rounds": [_round(key, columns, turns, report_images) for key in sorted(tests[test])]}
            for test in list(tests)[:CONVERSATIONS]
        ],
        "left_out": max(0, len(tests) - CONVERSATIONS),
    }


def _round(
    key: tuple[str, int], columns: Sequence[Column], turns: Sequence[Turns], report_images: ReportImages
) -> dict[str, Any]:
    turn = next(table[key] for table in turns if key in table)
    earlier = len(turn["images"]) - turn["new_images"]
    rows = answer_rows(key, columns, turns)
    scores = [table[key].get("scores", {}).get("token_f1") for table in turns if key in table]
    return {
        "question": turn["question"],
        "references": turn["references"],
        "show_references": True,
        "images": report_images.heldout([image["sha256"] for image in turn["images"][earlier:]], first=earlier + 1),
        "answers": [row | {"score": score} for row, score in zip(rows, scores, strict=True)],
    }


def _in_order(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in TEXT_METRICS if name in metrics}
