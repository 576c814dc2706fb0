"""The report's sections on answers: dialogues with their images, and a sample of incorrect answers.

Reads the `<suite>/<checkpoint>.jsonl` files in the folder of every `metrics.json`, one line per turn.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from scripts.common.errors import damaged
from scripts.common.files import read_json_lines
from scripts.evaluation.results import HELDOUT
from scripts.reporting.report_images import ReportImages
from scripts.reporting.scores import Column

MISTAKES = 12
DIALOGUES = 30
EXPANDED = 9
"""Dialogues of a suite that are shown expanded; the others are collapsed."""
Turns = dict[tuple[str, int], dict[str, Any]]


def suites(columns: Sequence[Column], report_images: ReportImages) -> list[dict[str, Any]]:
    """Every suite with its dialogues, those with the lowest mean score first, at most `DIALOGUES` of each."""
    names = dict.fromkeys(name for column in columns for name in column.metrics["suites"])
    return [_suite(name, columns, report_images) for name in names]


def mistakes(columns: Sequence[Column], report_images: ReportImages) -> list[dict[str, Any]]:
    """Held-out questions that at least one column answered incorrectly.

    Taken in turn from the kinds of questions, that with the lowest accuracy first, at most `MISTAKES`.
    """
    answers = [read_turns(column, HELDOUT) for column in columns]
    wrong: dict[str, list[tuple[str, int]]] = {}
    for key in dict.fromkeys(key for turns in answers for key, turn in turns.items() if turn["correct"] is False):
        turn = next(turns[key] for turns in answers if key in turns)
        wrong.setdefault(turn["kind"], []).append(key)
    by_kind = [wrong[kind] for kind in _kinds_by_accuracy(columns) if kind in wrong]
    keys = [key for row in zip_longest(*by_kind) for key in row if key is not None][:MISTAKES]
    return [_mistake(key, columns, answers, report_images) for key in keys]


def _suite(name: str, columns: Sequence[Column], report_images: ReportImages) -> dict[str, Any]:
    answers = [read_turns(column, name) if name in column.metrics["suites"] else {} for column in columns]
    tests: dict[str, list[tuple[str, int]]] = {}
    for key in dict.fromkeys(key for turns in answers for key in turns):
        tests.setdefault(key[0], []).append(key)

    worst_first = sorted(tests, key=lambda test: _mean_score(tests[test], answers))
    scores = [(column, column.metrics["suites"][name]) for column in columns if name in column.metrics["suites"]]
    return {
        "name": name,
        "scores": [f"{column.label}: {row['correct']} of {row['n']} correct" for column, row in scores if row["n"]],
        "columns": [{"run": column.label, "colour": column.colour} for column, _ in scores],
        "metrics": metric_rows([row.get("metrics", {}) for _, row in scores]),
        "dialogues": [
            {
                "name": test,
                "scores": _tally(tests[test], columns, answers),
                "rounds": [_round(key, name, columns, answers, report_images) for key in tests[test]],
            }
            for test in worst_first[:DIALOGUES]
        ],
        "left_out": max(0, len(worst_first) - DIALOGUES),
    }


def metric_rows(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of a suite or a dataset, one row each: a cell per column, `None` if a column lacks it."""
    names = dict.fromkeys(name for table in tables for name in table)
    rows: list[dict[str, Any]] = [{"name": name, "cells": [table.get(name) for table in tables]} for name in names]
    return [row for row in rows if any(cell and cell["value"] is not None for cell in row["cells"])]


def _tally(
    keys: Sequence[tuple[str, int]], columns: Sequence[Column], answers: Sequence[Turns]
) -> list[dict[str, Any]]:
    """How many of the scored rounds of a dialogue each column answered correctly."""
    tallies = []
    for column, turns in zip(columns, answers, strict=True):
        correct = [turns[key]["correct"] for key in keys if key in turns and turns[key]["correct"] is not None]
        if correct:
            tallies.append(
                {"run": column.label, "colour": column.colour, "correct": sum(correct), "scored": len(correct)}
            )
    return tallies


def _mean_score(keys: Sequence[tuple[str, int]], answers: Sequence[Turns]) -> float:
    """Mean score of a dialogue over all columns, from 0 to 1; 1 if no turn has a score."""
    scores = [score(turns[key]) for key in keys for turns in answers if key in turns]
    known = [value for value in scores if value is not None]
    return sum(known) / len(known) if known else 1.0


def score(turn: Mapping[str, Any]) -> float | None:
    """The score of an answer, from 0 to 1: whether it is correct, or else its first metric between 0 and 1."""
    if turn["correct"] is not None:
        return float(turn["correct"])
    return next((value for value in turn.get("scores", {}).values() if 0 <= value <= 1), None)


def _round(
    key: tuple[str, int], suite: str, columns: Sequence[Column], answers: Sequence[Turns], report_images: ReportImages
) -> dict[str, Any]:
    turn = next(turns[key] for turns in answers if key in turns)
    earlier = len(turn["images"]) - turn["new_images"]
    rows = answer_rows(key, columns, answers)
    return {
        "question": turn["question"],
        "references": turn["references"],
        "show_references": any(row["score"] is not None and row["score"] < 1 for row in rows),
        "images": report_images.of_suite(suite, turn["images"][earlier:], first=earlier + 1),
        "answers": rows,
    }


def _mistake(
    key: tuple[str, int], columns: Sequence[Column], answers: Sequence[Turns], report_images: ReportImages
) -> dict[str, Any]:
    turn = next(turns[key] for turns in answers if key in turns)
    return {
        "kind": turn["kind"],
        "question": turn["question"],
        "references": turn["references"],
        "show_references": True,
        # All images so far, because the question may be about an earlier one.
        "images": report_images.heldout([image["sha256"] for image in turn["images"]]),
        "answers": answer_rows(key, columns, answers),
        "prompt": turn["prompt"] if turn["round"] > 1 else "",
    }


def answer_rows(key: tuple[str, int], columns: Sequence[Column], answers: Sequence[Turns]) -> list[dict[str, Any]]:
    """The answers of all columns to one question, with their scores."""
    return [
        {
            "run": column.label,
            "colour": column.colour,
            "text": turns[key]["output"],
            "correct": turns[key]["correct"],
            "score": score(turns[key]),
        }
        for column, turns in zip(columns, answers, strict=True)
        if key in turns
    ]


def _kinds_by_accuracy(columns: Sequence[Column]) -> list[str]:
    lowest: dict[str, float] = {}
    for column in columns:
        for kind in column.metrics["heldout"]["kinds"]:
            if kind["n"]:
                lowest[kind["name"]] = min(kind["accuracy"], lowest.get(kind["name"], 1.0))
    return sorted(lowest, key=lambda name: (lowest[name], name))


def read_turns(column: Column, suite: str) -> Turns:
    """The turns of a suite, or of the held-out questions, by (test, round).

    Raises:
        UserError: the file is missing.
    """
    path = column.folder / suite / f"{column.checkpoint}.jsonl"
    try:
        lines: list[dict[str, Any]] = read_json_lines(path)
    except FileNotFoundError:
        raise damaged(path, "is missing", "its metrics exist") from None
    return {(line["test"], line["round"]): line for line in lines}
