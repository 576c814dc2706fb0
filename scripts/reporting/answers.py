"""The report's parts about answers: whole dialogues beside their images, and a sample of wrong answers, worst kinds
first.

Reads the `<suite>/<checkpoint>.jsonl` files beside every `metrics.json`, one line per turn.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from scripts.common.errors import UserError
from scripts.evaluation.results import HELDOUT
from scripts.reporting.report_images import ReportImages
from scripts.reporting.scores import Column

MISTAKES = 12
DIALOGUES = 30
UNFOLDED = 9
"""Dialogues of a suite that are seen at once; the others unfold."""
Turns = dict[tuple[str, int], dict[str, Any]]


def suites(columns: Sequence[Column], pictures: ReportImages) -> list[dict[str, Any]]:
    """Every suite with its dialogues, those with the most wrong answers first, at most `DIALOGUES` of each."""
    names = dict.fromkeys(name for column in columns for name in column.metrics["suites"])
    return [_suite(name, columns, pictures) for name in names]


def mistakes(columns: Sequence[Column], pictures: ReportImages) -> list[dict[str, Any]]:
    """Held-out questions that some column answered wrongly: one of the worst kind, one of the next, and so on."""
    answers = [read_turns(column, HELDOUT) for column in columns]
    wrong: dict[str, list[tuple[str, int]]] = {}
    for key in dict.fromkeys(key for turns in answers for key, turn in turns.items() if turn["correct"] is False):
        turn = next(turns[key] for turns in answers if key in turns)
        wrong.setdefault(turn["kind"], []).append(key)
    by_kind = [wrong[kind] for kind in _worst_first(columns) if kind in wrong]
    chosen = [key for keys in zip_longest(*by_kind) for key in keys if key is not None][:MISTAKES]
    return [_mistake(key, columns, answers, pictures) for key in chosen]


def _suite(name: str, columns: Sequence[Column], pictures: ReportImages) -> dict[str, Any]:
    answers = [read_turns(column, name) if name in column.metrics["suites"] else {} for column in columns]
    tests: dict[str, list[tuple[str, int]]] = {}
    for key in dict.fromkeys(key for turns in answers for key in turns):
        tests.setdefault(key[0], []).append(key)

    worst_first = sorted(tests, key=lambda test: _mean_score(tests[test], answers))
    scores = [(column, column.metrics["suites"][name]) for column in columns if name in column.metrics["suites"]]
    return {
        "name": name,
        "scores": [f"{column.label}: {row['correct']} of {row['n']} right" for column, row in scores if row["n"]],
        "columns": [{"run": column.label, "colour": column.colour} for column, _ in scores],
        "metrics": _metrics([row.get("metrics", {}) for _, row in scores]),
        "dialogues": [
            {
                "name": test,
                "scores": _tally(tests[test], columns, answers),
                "rounds": [_round(key, name, columns, answers, pictures) for key in tests[test]],
            }
            for test in worst_first[:DIALOGUES]
        ],
        "left_out": max(0, len(worst_first) - DIALOGUES),
    }


def _metrics(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The metrics of a suite, one row each: its value and interval in every column, None where it has none."""
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [{"name": name, "cells": [table.get(name) for table in tables]} for name in names]
    return [row for row in rows if any(cell and cell["value"] is not None for cell in row["cells"])]


def _tally(
    keys: Sequence[tuple[str, int]], columns: Sequence[Column], answers: Sequence[Turns]
) -> list[dict[str, Any]]:
    """How many rounds of a dialogue each column answered right, of those that can be judged."""
    tallies = []
    for column, turns in zip(columns, answers, strict=True):
        judged = [turns[key]["correct"] for key in keys if key in turns and turns[key]["correct"] is not None]
        if judged:
            tallies.append({"run": column.label, "colour": column.colour, "right": sum(judged), "judged": len(judged)})
    return tallies


def _mean_score(keys: Sequence[tuple[str, int]], answers: Sequence[Turns]) -> float:
    """How well a dialogue went over all columns, from 0 to 1; 1 where nothing can be judged."""
    found = [score(turns[key]) for key in keys for turns in answers if key in turns]
    judged = [value for value in found if value is not None]
    return sum(judged) / len(judged) if judged else 1.0


def score(turn: Mapping[str, Any]) -> float | None:
    """What an answer is worth, from 0 to 1: right or wrong, or else the share of a point that a metric gives it."""
    if turn["correct"] is not None:
        return float(turn["correct"])
    return next((value for value in turn.get("scores", {}).values() if 0 <= value <= 1), None)


def _round(
    key: tuple[str, int], suite: str, columns: Sequence[Column], answers: Sequence[Turns], pictures: ReportImages
) -> dict[str, Any]:
    turn = next(turns[key] for turns in answers if key in turns)
    old = len(turn["images"]) - turn["new_images"]
    given = _answers(key, columns, answers)
    return {
        "question": turn["question"],
        "references": turn["references"],
        "show_references": any(answer["worth"] is not None and answer["worth"] < 1 for answer in given),
        "images": pictures.of_suite(suite, turn["images"][old:], first=old + 1),
        "answers": given,
    }


def _mistake(
    key: tuple[str, int], columns: Sequence[Column], answers: Sequence[Turns], pictures: ReportImages
) -> dict[str, Any]:
    turn = next(turns[key] for turns in answers if key in turns)
    return {
        "kind": turn["kind"],
        "question": turn["question"],
        "references": turn["references"],
        "show_references": True,
        # Every image in view: an earlier one may be what the question is about.
        "images": pictures.heldout([image["sha256"] for image in turn["images"]]),
        "answers": _answers(key, columns, answers),
        "prompt": turn["prompt"] if turn["round"] > 1 else "",
    }


def _answers(key: tuple[str, int], columns: Sequence[Column], answers: Sequence[Turns]) -> list[dict[str, Any]]:
    return [
        {
            "run": column.label,
            "colour": column.colour,
            "text": turns[key]["output"],
            "correct": turns[key]["correct"],
            "worth": score(turns[key]),
        }
        for column, turns in zip(columns, answers, strict=True)
        if key in turns
    ]


def _worst_first(columns: Sequence[Column]) -> list[str]:
    lowest: dict[str, float] = {}
    for column in columns:
        for kind in column.metrics["heldout"]["kinds"]:
            if kind["n"]:
                lowest[kind["name"]] = min(kind["accuracy"], lowest.get(kind["name"], 1.0))
    return sorted(lowest, key=lambda name: (lowest[name], name))


def read_turns(column: Column, suite: str) -> Turns:
    """The turns of a suite, or of the held-out questions, by test and round.

    Raises:
        UserError: the file is gone.
    """
    path = column.folder / suite / f"{column.checkpoint}.jsonl"
    try:
        lines: list[Mapping[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, though its numbers do: run the evaluation again") from None
    return {(line["test"], line["round"]): dict(line) for line in lines}
